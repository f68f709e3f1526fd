"""A shard that fails whatever is tried: the study goes on without it, says so, and is whole again once it is mended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.plan import Plan
from metagen_ray.study import load_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SETTINGS = ("domains=4", "block_domains=4", "predict.samples=2", "analysis.resamples=100", "resources.overlap=off")


def run(store: Path, *more: str) -> subprocess.CompletedProcess:
    chosen = [a for s in (*SETTINGS, f"store={store}") for a in ("--set", s)]
    command = [sys.executable, "-m", "metagen_ray.cli", "run", "pocket", *chosen, *more]
    return subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=420)


def test_study_goes_on_without_a_shard_that_fails_three_times_and_is_whole_once_it_is_mended(tmp_path: Path):
    plan = Plan(StudyContext(load_study("pocket", [*SETTINGS, f"store={tmp_path}"])))
    broken, store = plan.adapters[0], plan.context.store
    store.put_files("object_sft", broken.key, {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, {})
    partial = run(tmp_path)
    assert partial.returncode == 6, partial.stdout[-3000:] + partial.stderr[-2000:]
    assert "ground_truth: 1 failed, again (2 of 3)" in partial.stdout
    assert "1 shards were given up after 3 attempts" in partial.stderr
    folder = tmp_path / "studies" / plan.study.run_name()
    (lost,) = json.loads((folder / "given_up.json").read_text())["ground_truth"]
    assert lost == next(a.key for a in plan.truth if a.adapter == broken.key)
    assert (
        f"given up, its cells are missing here: ground_truth {lost[:12]}" in (folder / "report/index.html").read_text()
    )
    assert {a.key for a in plan.truth} - store.keys("ground_truth") == {lost}
    store.drop("object_sft", broken.key)
    whole = run(tmp_path)
    assert whole.returncode == 0, whole.stdout[-3000:] + whole.stderr[-2000:]
    assert not (folder / "given_up.json").exists() and lost in store.keys("ground_truth")
    assert "given up" not in (folder / "report/index.html").read_text()
