"""One small pocket study run to its end, for every test that needs a finished one to compare with or to go on from."""

import json
import subprocess
import sys
from pathlib import Path

from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.plan import Plan
from metagen_ray.study import load_study

SMALL = (
    "domains=6", "block_domains=4", "predict.samples=2", "object_sft.epochs=1", "analysis.resamples=100",
    "analysis.deals=5",
)  # fmt: skip
LIMIT_S = 420


def plan_of(store: Path, *settings: str) -> Plan:
    """The plan of the study in a store."""
    return Plan(StudyContext(load_study("pocket", [*SMALL, *settings, f"store={store}"])))


def command_of(store: Path, *settings: str) -> list[str]:
    """What its user types to run it there."""
    chosen = [a for s in (*SMALL, *settings, f"store={store}") for a in ("--set", s)]
    return [sys.executable, "-m", "metagen_ray.cli", "run", "pocket", *chosen]


def finished(store: Path, *settings: str) -> Plan:
    """Run it to its end on this machine; AssertionError with the last lines where it fails."""
    done = subprocess.run(command_of(store, *settings), capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return plan_of(store, *settings)


def stages_of(plan: Plan) -> dict[str, dict]:
    """Figures of its last run, by stage."""
    return json.loads(plan.context.store.read_doc(f"studies/{plan.study.run_name()}/ledger.json"))["stages"]
