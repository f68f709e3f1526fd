"""A study that loses a fine-tune, is mended and grows: what it says of it."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from metagen_ray.stages.plan import Plan
from tests.calm import LIMIT_S, command_of, plan_of

LARGE = "domains=8"
OVERLAP = "resources.overlap=on"


@dataclass(frozen=True)
class Grown:
    """Two runs: one without a fine-tune that is broken, and a larger one after it was mended."""

    broken: str  # key of the adapter
    small: Plan
    partial: subprocess.CompletedProcess
    truth_then: set[str]  # truth that was there after the first
    given_up: dict[str, dict[str, str]]
    report: str
    large: Plan
    whole: subprocess.CompletedProcess


def run_both(root: Path) -> Grown:
    """Both runs, in one store."""
    small, large = plan_of(root), plan_of(root, LARGE)
    broken, store = small.adapters[-1].key, small.context.store
    store.put_files("object_sft", broken, {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, {})
    partial = _run(root)
    folder = root / "studies" / small.study.run_name()
    given_up, report = folder / "given_up.json", folder / "report/index.html"
    told = json.loads(given_up.read_text()) if given_up.exists() else {}
    seen = report.read_text() if report.exists() else ""
    truth_then = store.keys("ground_truth")
    store.drop("object_sft", broken)
    return Grown(broken, small, partial, truth_then, told, seen, large, _run(root, LARGE))


def _run(store: Path, *settings: str) -> subprocess.CompletedProcess:
    command = command_of(store, *settings, OVERLAP)
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
