"""DeepSpeed against the plain engine: ZeRO stages, ranks, several adapters on one engine, memory, broken gradients."""

import gc
from collections.abc import Mapping
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from metagen_ray.errors import StageError
from metagen_ray.study import Recipe
from metagen_ray.training.base import AdaptedModel, freeze, load_base
from metagen_ray.training.core import Member, Snapshot, train, train_bank
from metagen_ray.training.lora import Adapter, LoraShape
from metagen_ray.training.plain import PlainEngine
from metagen_ray.training.rows import Branch, Tree, plain_row
from metagen_ray.training.score import score
from metagen_ray.training.worker import Trainer, train_meta
from metagen_ray.training.zero import DeepSpeedEngine, start_alone
from tests.tiny import make_tiny_model
from tests.training.peft_alone import PARITY, relative_gap

pytestmark = pytest.mark.slow
RECIPE = Recipe(rank=4, alpha=8, lr=3e-3, epochs=2, batch_rows=7, clip=0.05, weight_decay=0.1, schedule="linear")
STAGES = (0, 1, 2, 3)
PARTS = ("flat", "first", "second")


def mixed_trees(seed: int) -> list[Tree]:
    """Plain rows and trees; some steps hold one tree alone, which two ranks must share."""
    rng = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> list[int]:
        return rng.integers(10, 300, rng.integers(low, high)).tolist()

    rows = [plain_row(tokens(2, 9), tokens(1, 9)) for _ in range(30)]
    trees = [Tree(tokens(20, 40), tuple(Branch(tokens(2, 8), tokens(1, 6)) for _ in range(8))) for _ in range(4)]
    return [*rows, *trees]


def model_at(directory: str) -> AdaptedModel:
    model = AdaptedModel(load_base(directory), [LoraShape.of(RECIPE)])
    model.pack_tokens = 60  # several packs a step
    return model


def worker(rank: int, world: int, directory: str, rendezvous: str, out: str) -> None:
    """Train adapters 1, 2 and 1 again on each stage's engine; save them and their losses."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    found = {}
    for stage in STAGES:
        engine = DeepSpeedEngine(model_at(directory), stage)
        for turn, seed in enumerate((1, 2, 1)):
            log = train(engine, mixed_trees(seed), RECIPE, seed)
            taken = engine.snapshot()
            found[stage, turn] = (engine.adapter(), log.losses, taken)
        engine.reset([5], [0.0])
        engine.restore(taken, RECIPE.weight_decay)
        again = engine.snapshot()
        assert again.updates == taken.updates
        assert all(torch.equal(getattr(again, part), getattr(taken, part)) for part in PARTS)
    torch.save(found, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plain(model_dir: Path) -> dict[int, tuple[Adapter, list[float], Snapshot]]:
    engine = PlainEngine(model_at(str(model_dir)))
    found = {}
    for seed in (1, 2):
        log = train(engine, mixed_trees(seed), RECIPE, seed)
        found[seed] = (engine.adapter(), log.losses, engine.snapshot())
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_deepspeed_all_stages_equal_the_plain_engine(model_dir: Path, tmp_path: Path, plain: dict, world: int) -> None:
    mp.spawn(worker, (world, str(model_dir), str(tmp_path / "meet"), str(tmp_path)), nprocs=world)
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for (_, turn), (adapter, losses, snapshot) in found.items():
            expected, expected_losses, expected_snapshot = plain[(1, 2, 1)[turn]]
            assert snapshot.updates == expected_snapshot.updates == len(losses)
            for part in PARTS:
                assert torch.allclose(getattr(snapshot, part), getattr(expected_snapshot, part), atol=1e-5)
            assert np.allclose(losses, expected_losses, atol=1e-5)
            assert max((adapter[n] - expected[n]).abs().max().item() for n in expected) < 1e-5


def sharded_worker(rank: int, world: int, directory: str, rendezvous: str, out: str) -> None:
    """Train on a base that lies in parts, with activations kept and recomputed; what a rank holds of the base."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    found = []
    for recompute in (False, True):
        base = freeze(load_base(directory, sharded=True), recompute)
        engine = DeepSpeedEngine(AdaptedModel(base, [LoraShape.of(RECIPE)]), 3)
        losses = train(engine, mixed_trees(1), RECIPE, 1).losses
        parts: list[Any] = list(base.parameters())
        held = [(p.numel(), p.ds_tensor.numel(), p.ds_numel) for p in parts]
        scored = list(chain.from_iterable(score(engine.model, mixed_trees(2))))
        found.append((engine.adapter(), losses, held, scored))
    torch.save(found, f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_deepspeed_shards_the_base_and_trains_the_same(model_dir: Path, tmp_path: Path) -> None:
    mp.spawn(sharded_worker, (2, str(model_dir), str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    plain = PlainEngine(AdaptedModel(load_base(model_dir), [LoraShape.of(RECIPE)]))
    expected = train(plain, mixed_trees(1), RECIPE, 1).losses
    for rank in range(2):
        for adapter, losses, held, scored in torch.load(tmp_path / f"{rank}.pt", weights_only=False):
            assert np.allclose(losses, expected, atol=1e-5)
            assert relative_gap(adapter, plain.adapter()) < PARITY
            assert np.allclose(scored, list(chain.from_iterable(score(plain.model, mixed_trees(2)))), atol=1e-4)
            assert sum(whole for whole, _, _ in held) == 0, "gathered weights were not let go"
            assert sum(part for _, part, _ in held) <= 0.5 * sum(all_ for _, _, all_ in held) + len(held)


class LateShelf:
    """A shelf on which the others of two ranks see a stand that rank 0 did not: it was saved between their looks."""

    def __init__(self, stands: dict[str, dict[str, bytes]], rank: int) -> None:
        self.stands, self.rank = stands, rank

    def due(self) -> bool:
        return False

    def hurry(self) -> None:
        pass

    def save(self, steps: int, files: Mapping[str, bytes]) -> None:
        pass

    def names(self) -> list[str]:
        return sorted(self.stands, reverse=True)[self.rank == 0 :]

    def read(self, name: str) -> dict[str, bytes]:
        return self.stands[name]


def late_worker(rank: int, world: int, directory: str, rendezvous: str, out: str) -> None:
    """Load the latest stand and go on from it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", timedelta(seconds=60), rank=rank, world_size=world)
    trainer = Trainer(model := model_at(directory), DeepSpeedEngine(model, 1))
    rows = mixed_trees(1)
    stands, epochs = {}, [rows, rows]

    def keep(steps: int, files: Mapping[str, bytes]) -> None:
        stands[f"{steps:03}"] = dict(files)

    shelf = LateShelf({}, 0)
    shelf.save, shelf.due = keep, lambda: True
    whole = train_meta(trainer, epochs, RECIPE, 1, shelf=shelf)
    every: list[Any] = [stands if rank == 0 else None]
    dist.broadcast_object_list(every)
    again = train_meta(trainer, epochs, RECIPE, 1, shelf=LateShelf(dict(sorted(every[0].items())[:4]), rank))
    torch.save((again.resumed, again.losses, whole.losses), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_that_see_different_stands_go_on_from_the_same_one(model_dir: Path, tmp_path: Path) -> None:
    mp.spawn(late_worker, (2, str(model_dir), str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    for rank in range(2):
        resumed, losses, whole = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert resumed == 3, "the fourth stand is one that rank 0 did not see"
        assert losses == pytest.approx(whole, abs=1e-5)


def bank_members() -> list[Member]:
    """Ranks, rates, lengths, decays and clips differ; one trains on trees; two drop."""
    found = []
    for n, rank in enumerate((4, 2, 3)):
        more = {"rank": rank, "lr": 1e-3 * (n + 1), "epochs": 1 + n % 2, "clip": (0.05, 1.0, 0.02)[n]}
        recipe = RECIPE.model_copy(update=more | {"dropout": 0.2 * (n > 0)})
        found.append(Member(mixed_trees(n)[: 34 - 6 * n], recipe, n))
    return found


def bank_model(directory: str) -> AdaptedModel:
    model = AdaptedModel(load_base(directory), [LoraShape.of(m.recipe) for m in bank_members()])
    model.pack_tokens = 90
    return model


def bank_worker(rank: int, world: int, directory: str, rendezvous: str, out: str) -> None:
    """Train the same bank twice on each stage's engine, fewer members in between; save the second."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    found = {}
    for stage in STAGES:
        engine = DeepSpeedEngine(bank_model(directory), stage)
        train_bank(engine, bank_members()[:2])
        logs = train_bank(engine, bank_members())
        found[stage] = [(engine.adapter(slot), log.losses) for slot, log in enumerate(logs)]
    torch.save(found, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2])
def test_deepspeed_bank_all_stages_equal_each_adapter_alone(model_dir: Path, tmp_path: Path, world: int) -> None:
    mp.spawn(bank_worker, (world, str(model_dir), str(tmp_path / "meet"), str(tmp_path)), nprocs=world)
    for slot, member in enumerate(bank_members()):
        engine = PlainEngine(AdaptedModel(load_base(model_dir), [LoraShape.of(member.recipe)]))
        losses = train(engine, member.trees, member.recipe, member.seed).losses
        for rank in range(world):
            for bank in torch.load(tmp_path / f"{rank}.pt", weights_only=False).values():
                adapter, banked = bank[slot]
                # Two ranks may cut a tree; a question that both read is then dropped from apart.
                cut = world > 1 and member.recipe.dropout > 0
                assert np.allclose(banked, losses, atol=1e-2 if cut else 1e-5)
                assert relative_gap(adapter, engine.adapter()) < (1e-2 if cut else PARITY)


@pytest.fixture(scope="module")
def alone() -> None:
    start_alone()  # never ended: DeepSpeed keeps the first group of a process for good


def resident_mib() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def test_deepspeed_twenty_banks_on_one_engine_do_not_leak(model_dir: Path, alone: None) -> None:
    model = AdaptedModel(load_base(model_dir), [LoraShape.of(RECIPE)] * 3)
    engine = DeepSpeedEngine(model, 1)
    sizes = []
    for seed in range(23):
        train_bank(engine, [Member(mixed_trees(seed + n)[:14], RECIPE, seed + n) for n in range(3)])
        sizes.append(resident_mib())
    assert sizes[-1] - sizes[2] < 4


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_broken_gradient_fails_and_the_engine_goes_on(model_dir: Path, alone: None, stage: int) -> None:
    rows = mixed_trees(3)[:14]
    engine = DeepSpeedEngine(model_at(str(model_dir)), stage)
    train(engine, rows, RECIPE, 3)
    clean = engine.adapter()
    with pytest.raises(StageError, match="not finite"):
        train(engine, rows, RECIPE.model_copy(update={"lr": 1e30}), 3)
    train(engine, rows, RECIPE, 3)
    again = engine.adapter()
    assert all(torch.equal(clean[n], again[n]) for n in clean)
