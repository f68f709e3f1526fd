"""A shard that fails whatever is tried: the study goes on without it, says so, and is whole again once it is mended."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from metagen_ray.stages.plan import Plan
from metagen_ray.store.keys import BLOBS
from tests.calm import LIMIT_S, command_of, plan_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(store: Path) -> subprocess.CompletedProcess:
    command = command_of(store, "resources.overlap=off")
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)


def test_study_goes_on_without_a_shard_that_fails_three_times_and_is_whole_once_it_is_mended(
    calm: Plan, tmp_path: Path
):
    plan = plan_of(tmp_path)
    for folder in ("object_sft", BLOBS):  # the fine-tunes are there already
        shutil.copytree(Path(calm.study.store) / "pool" / folder, tmp_path / "pool" / folder)
    broken, store = plan.adapters[0], plan.context.store
    store.drop("object_sft", broken.key)
    store.put_files("object_sft", broken.key, {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, {})
    partial = run(tmp_path)
    assert partial.returncode == 6, partial.stdout[-3000:] + partial.stderr[-2000:]
    assert "ground_truth: 2 failed, again (2 of 3)" in partial.stdout
    assert "2 shards were given up after 3 attempts" in partial.stderr
    folder = tmp_path / "studies" / plan.study.run_name()
    report, given_up = folder / "report/index.html", folder / "given_up.json"
    lost = set(json.loads(given_up.read_text())["ground_truth"])
    assert lost == {a.key for a in plan.truth if a.adapter == broken.key}
    assert all(f"given up, its cells are missing here: ground_truth {k[:12]}" in report.read_text() for k in lost)
    assert {a.key for a in plan.truth} - store.keys("ground_truth") == lost
    store.drop("object_sft", broken.key)
    whole = run(tmp_path)
    assert whole.returncode == 0, whole.stdout[-3000:] + whole.stderr[-2000:]
    assert not given_up.exists() and lost <= store.keys("ground_truth")
    assert "given up" not in report.read_text()
