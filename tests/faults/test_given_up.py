"""A shard that fails whatever is tried, while a study grows side by side: it goes on without it and says so."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from metagen_ray.stages.plan import Plan
from metagen_ray.stages.status import Status
from tests.calm import LIMIT_S, command_of, plan_of, stages_of

pytestmark = [pytest.mark.slow, pytest.mark.machine, pytest.mark.timeout(900)]
LARGE = "domains=8"


def run(store: Path) -> subprocess.CompletedProcess:
    command = command_of(store, LARGE, "resources.overlap=on")
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)


def overlapped(plan: Plan) -> set[str]:
    return {name for name, figures in stages_of(plan).items() if figures.get("overlapped")}


def test_growing_study_goes_on_without_a_shard_that_fails_three_times_and_is_whole_once_it_is_mended(
    calm: Plan, tmp_path: Path
):
    """Of two domains more than the calm study has, the fine-tune of one is broken; its truth cannot be asked."""
    shutil.copytree(calm.study.store, tmp_path / "store")
    plan = plan_of(tmp_path / "store", LARGE)
    broken, store = plan.adapters[-1], plan.context.store
    store.put_files("object_sft", broken.key, {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, {})
    partial = run(tmp_path / "store")
    assert partial.returncode == 6, partial.stdout[-3000:] + partial.stderr[-2000:]
    assert "ground_truth: 2 failed, again (2 of 3)" in partial.stdout
    assert "2 shards were given up after 3 attempts" in partial.stderr
    folder = tmp_path / "store" / "studies" / plan.study.run_name()
    report, given_up = folder / "report/index.html", folder / "given_up.json"
    lost = set(json.loads(given_up.read_text())["ground_truth"])
    assert lost == {a.key for a in plan.truth if a.adapter == broken.key}
    assert all(f"given up, its cells are missing here: ground_truth {k[:12]}" in report.read_text() for k in lost)
    assert {a.key for a in plan.truth} - store.keys("ground_truth") == lost
    store.drop("object_sft", broken.key)
    for stage, key in (("predict", plan.untrained[-1].key), ("meta_sft", plan.meta)):  # of every stage something again
        store.drop(stage, key)
    whole = run(tmp_path / "store")
    assert whole.returncode == 0, whole.stdout[-3000:] + whole.stderr[-2000:]
    assert Status(plan).complete() and not given_up.exists() and lost <= store.keys("ground_truth")
    assert "given up" not in report.read_text()
    # Training and asking side by side made what the calm study has made one after the other.
    assert {"object_sft", "ground_truth", "predict untrained", "judge truth", "meta_sft"} <= overlapped(plan)
    assert not overlapped(calm)
