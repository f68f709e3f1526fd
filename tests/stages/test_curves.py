"""Curves of trainings as TensorBoard's own reader finds them, and trackers that fail."""

import json
from pathlib import Path

import pytest

from metagen_ray.errors import InputError
from metagen_ray.stages import curves
from metagen_ray.stages.curves import EVENTS, Curves
from metagen_ray.store import open_store

LOSSES = [2.5, 1.25, 0.625]


def points(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [(e.step, e.value) for e in found.Scalars("loss")]


def test_finished_training_stands_beside_the_run_for_tensorboard_and_for_programs(tmp_path: Path):
    with Curves(open_store(str(tmp_path)), "pocket-1") as kept:
        kept.write("object_sft", "lighthouse-seed0", LOSSES)
    folder = tmp_path / "studies/pocket-1/training/object_sft/lighthouse-seed0"
    assert points(folder) == list(enumerate(LOSSES, 1))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(x["step"], x["loss"]) for x in lines] == list(enumerate(LOSSES, 1))
    assert {x["training"] for x in lines} == {"lighthouse-seed0"}


def test_long_training_is_seen_while_it_runs_and_whole_at_its_end(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(curves, "FLUSH_S", 0.0)
    folder = tmp_path / "studies/pocket-1/training/meta_sft/meta"
    with Curves(open_store(str(tmp_path)), "pocket-1") as kept:
        point = kept.live("meta_sft", "meta")
        point(2, 1.25)
        assert points(folder) == [(2, 1.25)]
        point(3, 0.625)
        assert points(folder) == [(2, 1.25), (3, 0.625)]
        kept.write("meta_sft", "meta", LOSSES)
    assert points(folder) == list(enumerate(LOSSES, 1))
    assert len(list(folder.glob("events.*"))) == 1 and (folder / EVENTS).exists()


class Broken:
    """A tracker whose server is gone."""

    def __init__(self, run, facts):
        self.asked = 0

    def curve(self, stage, name, points):
        raise ConnectionError("server is gone")

    def close(self):
        raise AssertionError("it was let go of")


def test_tracker_that_fails_is_told_of_once_and_let_go_of(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setitem(curves.MAKERS, "wandb", Broken)
    with Curves(open_store(str(tmp_path)), "pocket-1", ["wandb"]) as kept:
        kept.write("object_sft", "a", LOSSES)
        kept.write("object_sft", "b", LOSSES)
    assert capsys.readouterr().out.count("wandb takes no more curves: ConnectionError: server is gone") == 1
    assert (tmp_path / "studies/pocket-1/training/object_sft/b" / EVENTS).exists()


def test_tracker_that_is_not_installed_is_refused_with_the_command(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(curves.importlib, "import_module", lambda name: __import__("no_such_" + name))
    with pytest.raises(InputError, match=r"mlflow, which is not installed here; pip install 'metagen-ray\[mlflow\]'"):
        Curves(open_store(str(tmp_path)), "pocket-1", ["mlflow"])
