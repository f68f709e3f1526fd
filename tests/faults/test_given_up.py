"""A shard that fails whatever is tried, while training and asking go side by side: the study goes on without it and
says so, and one that grows from it has all.
"""

import pytest

from metagen_ray.stages.plan import Plan
from metagen_ray.stages.status import Status
from tests.calm import stages_of
from tests.faults.grown import Grown

pytestmark = [pytest.mark.slow, pytest.mark.machine, pytest.mark.timeout(1200)]


def overlapped(plan: Plan) -> set[str]:
    return {name for name, figures in stages_of(plan).items() if figures.get("overlapped")}


def test_study_goes_on_without_a_shard_that_fails_three_times_and_a_larger_one_is_whole_once_it_is_mended(grown: Grown):
    """The fine-tune of one domain of six is broken: its truth cannot be asked."""
    partial, whole = grown.partial, grown.whole
    assert partial.returncode == 6, partial.stdout[-3000:] + partial.stderr[-2000:]
    assert "ground_truth: 2 failed, again (2 of 3)" in partial.stdout
    assert "2 shards were given up after 3 attempts" in partial.stderr
    lost = set(grown.given_up["ground_truth"])
    assert lost == {a.key for a in grown.small.truth if a.adapter == grown.broken}
    assert all(f"given up, its cells are missing here: ground_truth {k[:12]}" in grown.report for k in lost)
    assert {a.key for a in grown.small.truth} - grown.truth_then == lost
    assert whole.returncode == 0, whole.stdout[-3000:] + whole.stderr[-2000:]
    store, folder = grown.large.context.store, f"studies/{grown.large.study.run_name()}"
    answered = {a.key for a in grown.large.truth if a.adapter == grown.broken}  # of blocks that have grown, too
    assert Status(grown.large).complete() and answered <= store.keys("ground_truth")
    assert b"given up" not in store.read_doc(f"{folder}/report/index.html")
    assert {"object_sft", "ground_truth", "predict untrained", "judge truth", "meta_sft"} <= overlapped(grown.large)
