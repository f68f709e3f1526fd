"""A whole tiny study on a local Ray, training and asking side by side: the same artifacts as one after the other."""

import json

import pytest

from metagen_ray.stages.plan import Plan
from metagen_ray.stages.status import Status
from tests.calm import finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def ledger(plan: Plan) -> dict:
    return json.loads(plan.context.store.read_doc(f"studies/{plan.study.run_name()}/ledger.json"))


def flat(figures: dict) -> dict[str, dict]:
    """Stages of a ledger, whatever stands beside them."""
    return figures.get("stages", figures)


def test_study_side_by_side_commits_what_it_commits_in_turn(calm: Plan, tmp_path):
    side = finished(tmp_path, "resources.overlap=on")
    assert Status(side).complete() and Status(side).present == Status(calm).present
    overlapped = {name for name, figures in flat(ledger(side)).items() if figures.get("overlapped")}
    assert {"object_sft", "ground_truth", "predict untrained", "judge truth", "meta_sft"} <= overlapped
    assert not any(figures.get("overlapped") for figures in flat(ledger(calm)).values())
