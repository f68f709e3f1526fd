"""Pretraining: an interrupted run ends where an undisturbed one does, in either phase; other settings are refused."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from metagen_ray.errors import InputError
from metagen_ray.lab import pretrain as room
from metagen_ray.lab.pretrain import PretrainConfig, pretrain

TINY = PretrainConfig(rho=0.5, steps=6, judge_steps=6, rows=2, length=64, hidden=16, layers=1)


class Stopped(Exception):
    pass


def train(directory: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> dict:
    """Train; with `stop_after`, break off before that many steps are done in this call."""
    monkeypatch.setattr(room, "CHECKPOINT_EVERY", 2)
    directory.mkdir(exist_ok=True)
    step, count = room.Run.step, [0]

    def counted(self, forward, number):
        count[0] += 1
        if count[0] == stop_after:
            raise Stopped
        return step(self, forward, number)

    with monkeypatch.context() as patch:
        patch.setattr(room.Run, "step", counted)
        return pretrain(TINY, directory)


@pytest.mark.parametrize("stop_after", [5, 11], ids=["first phase", "last phase"])
def test_pretrain_interrupted_goes_on_to_the_same_weights(tmp_path, monkeypatch, stop_after):
    train(tmp_path / "calm", monkeypatch)
    with pytest.raises(Stopped):
        train(tmp_path / "rough", monkeypatch, stop_after)
    record = train(tmp_path / "rough", monkeypatch)
    calm, rough = (load_file(tmp_path / name / "model.safetensors") for name in ("calm", "rough"))
    assert all((calm[name] == rough[name]).all() for name in calm)
    assert json.loads((tmp_path / "rough" / "record.json").read_text()) == record
    assert record["tokens"] == 12 * 2 * 64
    assert not (tmp_path / "rough" / "checkpoint.pt").exists()


def test_pretrain_refuses_a_checkpoint_of_other_settings(tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        train(tmp_path, monkeypatch, 5)
    with pytest.raises(InputError, match="other settings"):
        pretrain(PretrainConfig(rho=0.0, steps=6), tmp_path)


@pytest.mark.parametrize(
    "bad", [{"rho": 2}, {"rows": 0}, {"length": 1}, {"lr": -1.0}, {"lr": float("nan")}, {"hidden": 12}, {"steps": -1}]
)
def test_pretrain_refuses_settings_that_cannot_train(bad):
    with pytest.raises(InputError):
        PretrainConfig(**{"rho": 0.5, **bad})
