"""Meta-SFT: one adapter that foresees fine-tunes, trained data-parallel. Commits it with its log; owns no rows."""

from collections.abc import Mapping

from metagen_ray.stages.meta_rows import epoch_trees
from metagen_ray.stages.plan import Plan
from metagen_ray.training.core import OnStep
from metagen_ray.training.lanes import run_meta
from metagen_ray.training.shelf import StoreShelf
from metagen_ray.training.worker import MetaResult


def run(plan: Plan, versions: Mapping[str, str], on_step: OnStep) -> MetaResult:
    """Train the meta adapter and commit it under its key. `on_step` hears of some of the steps."""
    context, study = plan.context, plan.study
    recipe = study.meta_sft.recipe
    laid = [epoch_trees(plan, epoch) for epoch in range(recipe.epochs)]
    shelf = StoreShelf(context.store.root, plan.meta, sum(map(len, laid)))
    result = run_meta(
        context.base.directory,
        laid,
        recipe,
        study.seed,
        study.resources,
        f"{study.run_name()}-meta",
        on_progress=on_step,
        shelf=shelf,
    )
    record = {
        "settings": study.meta_sft.model_dump(mode="json"),
        "meta_train": list(context.halves.meta_train),
        "seed": study.seed,
        "losses": result.losses,
        "tokens": result.tokens,
        "train_seconds": result.seconds,
        "nodes": list(result.nodes),
        "resumed_after_steps": result.resumed,
        "fingerprint": study.fingerprint(),
        "versions": dict(versions),
    }
    context.store.put_files("meta_sft", plan.meta, result.files, record)
    shelf.clear()
    return result
