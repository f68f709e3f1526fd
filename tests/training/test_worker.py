"""The loops of one process: failed jobs, engines shared by jobs, schedules, meta-SFT with inner loss and resumption."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metagen_ray.errors import InputError, StoreError
from metagen_ray.study import Recipe
from metagen_ray.training.base import AdaptedModel, load_base
from metagen_ray.training.core import learning_rate, train
from metagen_ray.training.lora import LoraShape, read_adapter
from metagen_ray.training.plain import PlainEngine
from metagen_ray.training.rows import Branch, Tree, plain_row
from metagen_ray.training.score import mean_loss
from metagen_ray.training.shelf import StoreShelf
from metagen_ray.training.worker import AdapterJob, Outcome, Trainer, make_banks, train_meta, train_share
from tests.tiny import make_tiny_model
from tests.training.peft_alone import PARITY, relative_gap

RECIPE = Recipe(rank=2, alpha=4, lr=5e-3, epochs=2, batch_rows=4)
META = Recipe(rank=2, alpha=4, lr=5e-3, epochs=3, batch_rows=8, schedule="linear", dropout=0.1)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def rows(seed: int, count: int = 10) -> list[Tree]:
    rng = np.random.default_rng(seed)
    return [plain_row(rng.integers(10, 300, 5).tolist(), rng.integers(10, 300, 4).tolist()) for _ in range(count)]


def trees(seed: int) -> list[Tree]:
    rng = np.random.default_rng(seed)

    def branch() -> Branch:
        return Branch(rng.integers(10, 300, 4).tolist(), rng.integers(10, 300, 3).tolist())

    return [Tree(rng.integers(10, 300, 12).tolist(), tuple(branch() for _ in range(5))) for _ in range(4)]


def trainer_at(model_dir: Path, shapes: Sequence[LoraShape]) -> Trainer:
    model = AdaptedModel(load_base(model_dir), shapes)
    return Trainer(model, PlainEngine(model))


def job(name: str, recipe: Recipe = RECIPE, seed: int = 0, data: list[Tree] | None = None) -> AdapterJob:
    return AdapterJob(name, rows(seed) if data is None else data, recipe, seed, {"domain": name})


class Sink:
    """Keeps what is committed, refuses one key."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[Mapping[str, bytes], Mapping[str, Any]]] = {}

    def commit(self, key: str, files: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
        if key == "refused":
            raise StoreError("the store is full; make room")
        self.found[key] = (files, record)


@pytest.mark.parametrize("bank", [1, 3, 16])
def test_train_share_failed_jobs_are_outcomes_and_the_rest_is_trained(model_dir: Path, bank: int) -> None:
    hot = RECIPE.model_copy(update={"lr": 1e30})
    jobs = [
        job("first"), job("empty", data=[]), job("hot", hot), job("refused"),
        job("no context", data=[plain_row([], [5])]),
        job("last", seed=3), job("stored"),
    ]  # fmt: skip
    sink, told = Sink(), list[Outcome]()
    made: list[LoraShape] = []

    def make(shapes: Sequence[LoraShape]) -> Trainer:
        made.append(shapes[0])
        return trainer_at(model_dir, shapes)

    outcomes = {o.key: o for o in train_share(make, jobs, sink.commit, told.append, {"stored"}.__contains__, bank)}
    assert set(outcomes) == {j.key for j in jobs} == {o.key for o in told}
    assert set(sink.found) == {"first", "last"} and len(made) == 1
    assert [outcomes[k].ok for k in ("first", "last", "stored")] == [True] * 3
    assert "no rows" in outcomes["empty"].reason
    assert "learning rate" in outcomes["hot"].reason
    assert "make room" in outcomes["refused"].reason
    assert "nothing before it" in outcomes["no context"].reason
    assert len(outcomes["last"].losses) == 6
    assert sink.found["last"][1]["domain"] == "last" and sink.found["last"][1]["train_tokens"] == 80


@pytest.mark.parametrize(("jobs", "bank", "sizes"), [(18, 16, [9, 9]), (16, 16, [16]), (5, 2, [2, 2, 1]), (1, 4, [1])])
def test_make_banks_are_even_and_keep_like_lengths_together(jobs: int, bank: int, sizes: list[int]) -> None:
    many = [job(str(n), data=rows(n, 3 + n)) for n in range(jobs)]
    banks = make_banks(many, bank)
    assert sorted(map(len, banks), reverse=True) == sizes
    costs = [one.cost() for members in banks for one in members]
    assert costs == sorted(costs, reverse=True) and len(costs) == jobs


@pytest.mark.parametrize("bank", [1, 4])
def test_train_share_adapter_does_not_depend_on_what_the_engine_did_before(model_dir: Path, bank: int) -> None:
    wide = RECIPE.model_copy(update={"rank": 4})
    jobs = [job("a"), job("wide", wide), job("b", RECIPE.model_copy(update={"weight_decay": 0.5}), 1), job("c", seed=2)]
    together, alone = Sink(), Sink()
    train_share(lambda s: trainer_at(model_dir, s), jobs, together.commit, lambda o: None, bank=bank)
    for one in jobs:
        train_share(lambda s: trainer_at(model_dir, s), [one], alone.commit, lambda o: None)
    for key in ("a", "wide", "b", "c"):
        ours, theirs = read_adapter(together.found[key][0]), read_adapter(alone.found[key][0])
        assert relative_gap(ours, theirs) < (PARITY if bank > 1 else 1e-12)


def test_training_lowers_the_loss_and_seeds_decide(model_dir: Path) -> None:
    trainer = trainer_at(model_dir, [LoraShape.of(RECIPE)])
    recipe, data = RECIPE.model_copy(update={"epochs": 20, "lr": 2e-2}), rows(0)
    log = train(trainer.engine, data, recipe, 1)
    first = trainer.engine.adapter()
    assert np.mean(log.losses[-3:]) < np.mean(log.losses[:3]) - 0.3 and log.tokens == 20 * 40
    train(trainer.engine, data, recipe, 1)
    assert all(torch.equal(first[n], tensor) for n, tensor in trainer.engine.adapter().items())
    train(trainer.engine, data, recipe, 2)
    assert not all(torch.equal(first[n], tensor) for n, tensor in trainer.engine.adapter().items())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0, 0.5, 1, 1, 1, 1]),
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0, 0.5, 1, 0.854, 0.5, 0.146]),
    ],
)
def test_learning_rate_warms_up_and_decays(schedule: str, expected: list[float]) -> None:
    recipe = RECIPE.model_copy(update={"lr": 1.0, "schedule": schedule, "warmup_share": 0.3})
    assert [learning_rate(recipe, s, 6) for s in range(6)] == pytest.approx(expected, abs=1e-3)


def test_lora_unknown_target_is_named(model_dir: Path) -> None:
    with pytest.raises(InputError, match=r"q_prj.*k_proj"):
        trainer_at(model_dir, [LoraShape.of(RECIPE.model_copy(update={"targets": ("q_prj",)}))])


def test_load_base_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_base(tmp_path / "nowhere")


def test_train_meta_keeps_the_best_epoch_by_inner_loss(model_dir: Path) -> None:
    wild = META.model_copy(update={"lr": 0.3, "epochs": 4, "dropout": 0.0})
    trainer = trainer_at(model_dir, [LoraShape.of(wild)])
    inner = trees(9)
    epochs = [trees(e) for e in range(4)]
    best = train_meta(trainer, epochs, wild, 1, inner, keep_best=True)
    assert len(best.inner_losses) == 4 and best.epoch == 1 + int(np.argmin(best.inner_losses))
    with torch.no_grad():
        trainer.model.flats[0].copy_(trainer.model.slots[0].flat(read_adapter(best.files)))
    assert mean_loss(trainer.model, inner) == pytest.approx(min(best.inner_losses), abs=1e-5)
    last = train_meta(trainer, epochs, wild, 1, inner)
    assert last.epoch == 4 and last.inner_losses == pytest.approx(best.inner_losses)


@pytest.mark.parametrize(("stopped", "every_s", "first"), [(4, 3600.0, 3), (4, 0.0, 4), (2, 0.0, 2), (2, 3600.0, 1)])
def test_train_meta_stopped_goes_on_from_its_last_stand_to_the_same_adapter(
    model_dir: Path, tmp_path: Path, stopped: int, every_s: float, first: int
) -> None:
    epochs = [trees(e) for e in range(3)]
    whole = train_meta(trainer_at(model_dir, [LoraShape.of(META)]), epochs, META, 1, trees(9), keep_best=True)
    shelf = StoreShelf(str(tmp_path / "store"), "a" * 64, 1000, every_s)

    def stop(step: int, steps: int, loss: float) -> None:
        if step == stopped:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_meta(trainer_at(model_dir, [LoraShape.of(META)]), epochs, META, 1, trees(9), True, stop, shelf)
    steps: list[int] = []
    again = train_meta(
        trainer_at(model_dir, [LoraShape.of(META)]),
        epochs,
        META,
        1,
        trees(9),
        True,
        lambda s, *_: steps.append(s),
        shelf,
    )
    assert steps[0] == first and len(again.losses) == len(whole.losses)
    assert again.losses == pytest.approx(whole.losses, abs=1e-6)
    assert again.inner_losses == pytest.approx(whole.inner_losses, abs=1e-6)
    ours, theirs = read_adapter(again.files), read_adapter(whole.files)
    assert max((ours[n] - theirs[n]).abs().max().item() for n in theirs) < 1e-6


def test_node_that_is_about_to_go_has_the_training_saved_at_once_and_often(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metagen_ray.training.worker.LOOK_S", 0.0)
    monkeypatch.setattr("metagen_ray.training.shelf.HURRIED_S", 0.0)
    epochs, asked, saved = [trees(e) for e in range(3)], [], []
    shelf = StoreShelf(str(tmp_path / "store"), "a" * 64, 1000)
    keep = shelf.save
    monkeypatch.setattr(StoreShelf, "save", lambda self, steps, files: (saved.append(steps), keep(steps, files)))

    def warned() -> bool:
        asked.append(True)
        return len(asked) >= 2

    train_meta(trainer_at(model_dir, [LoraShape.of(META)]), epochs, META, 1, shelf=shelf, warned=warned)
    assert saved == [2, 3, 4, 5, 6]  # an epoch has two steps; the second question comes after the third


def test_shelf_keeps_two_stands_passes_over_a_damaged_one_and_clears_all(tmp_path: Path) -> None:
    root = tmp_path / "store"
    shelf = StoreShelf(str(root), "a" * 64, 1000)
    for steps in (3, 5, 9):
        shelf.save(steps, {"stand.json": str(steps).encode()})
    blobs = sorted((root / "pool" / "blobs").iterdir())
    assert len(list((root / "pool" / "checkpoint").iterdir())) == len(blobs) == 2
    assert shelf.read(shelf.names()[0]) == {"stand.json": b"9"}
    next(b for b in blobs if b.read_bytes() == b"9").unlink()
    assert [shelf.read(name) for name in shelf.names()] == [None, {"stand.json": b"5"}]
    shelf.clear()
    assert not shelf.names() and not list((root / "pool" / "blobs").iterdir())
