"""What meta-SFT learns from: trees whose prefix shows a training set and whose branches are its model's answers. Reads
committed answers; trains nothing.
"""

from metagen_ray.stages.meta_cells import epoch_cells
from metagen_ray.stages.plan import Plan
from metagen_ray.training.rows import Branch, Tree


def epoch_trees(plan: Plan, epoch: int) -> list[Tree]:
    """The cells of an epoch as trees, one for every k-draw."""
    return [Tree(prefix, tuple(Branch(*b) for b in branches)) for prefix, branches in epoch_cells(plan, epoch)]
