"""A whole tiny study on a local Ray, training and asking side by side: the same artifacts as one after the other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.plan import Plan
from metagen_ray.stages.status import Status
from metagen_ray.study import load_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SMALL = ("domains=8", "block_domains=4", "predict.samples=2", "analysis.resamples=100")
LIMIT_S = 420


def finished(store: Path, overlap: str) -> Plan:
    """The plan of a study that was run to its end through the command line."""
    settings = [*SMALL, f"store={store}", f"resources.overlap={overlap}"]
    arguments = [a for s in settings for a in ("--set", s)]
    command = [sys.executable, "-m", "metagen_ray.cli", "run", "pocket", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return Plan(StudyContext(load_study("pocket", settings)))


def ledger(plan: Plan) -> dict:
    return json.loads(plan.context.store.read_doc(f"studies/{plan.study.run_name()}/ledger.json"))


def flat(figures: dict) -> dict[str, dict]:
    """Stages of a ledger, whatever stands beside them."""
    return figures.get("stages", figures)


def test_study_side_by_side_commits_what_it_commits_in_turn(tmp_path):
    side, turn = finished(tmp_path / "side", "on"), finished(tmp_path / "turn", "off")
    assert Status(side).complete() and Status(side).present == Status(turn).present
    overlapped = {name for name, figures in flat(ledger(side)).items() if figures.get("overlapped")}
    assert {"object_sft", "ground_truth", "predict untrained", "judge truth", "meta_sft"} <= overlapped
    assert not any(figures.get("overlapped") for figures in flat(ledger(turn)).values())
