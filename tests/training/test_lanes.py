"""Lanes and meta-SFT on a Ray cluster of this machine: commits, failures, progress, a killed worker, equal adapters."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest
import ray
import ray.train

from metagen_ray.errors import StageError, StoreError
from metagen_ray.store import Store, content_key, open_store
from metagen_ray.study import Recipe, Resources
from metagen_ray.training.base import AdaptedModel, load_base
from metagen_ray.training.lanes import COLLECTIVE_TIMEOUT_S, deal_jobs, run_lanes, run_meta
from metagen_ray.training.lora import Adapter, LoraShape, read_adapter
from metagen_ray.training.plain import PlainEngine
from metagen_ray.training.rows import Branch, Tree, plain_row
from metagen_ray.training.shelf import StoreShelf
from metagen_ray.training.worker import AdapterJob, Outcome, Trainer, train_meta, train_share
from tests.local_ray import local_ray
from tests.tiny import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.machine, pytest.mark.timeout(600)]
RECIPE = Recipe(rank=2, alpha=4, lr=3e-3, epochs=2, batch_rows=4)
META = Recipe(rank=4, alpha=8, lr=3e-3, epochs=2, batch_rows=6, schedule="linear")
TWO_LANES = Resources(lanes=2, cpus_per_worker=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(cpus=2):
        yield


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def job(number: int, recipe: Recipe = RECIPE, count: int = 12) -> AdapterJob:
    rng = np.random.default_rng(number)
    rows = [plain_row(rng.integers(10, 300, 6).tolist(), rng.integers(10, 300, 5).tolist()) for _ in range(count)]
    return AdapterJob(content_key({"number": number}), rows, recipe, number, {"number": number})


def trees(seed: int) -> list[Tree]:
    rng = np.random.default_rng(seed)

    def branch() -> Branch:
        return Branch(rng.integers(10, 300, 4).tolist(), rng.integers(10, 300, rng.integers(2, 6)).tolist())

    return [Tree(rng.integers(10, 300, 12).tolist(), tuple(branch() for _ in range(5))) for _ in range(6)]


def committed(store: Store, key: str, folder: Path) -> tuple[Adapter, dict]:
    record = store.fetch_files("object_sft", key, folder / key)
    return read_adapter({p.name: p.read_bytes() for p in (folder / key).iterdir()}), record


def gap(ours: Adapter, theirs: Adapter) -> float:
    return max((ours[n] - theirs[n]).abs().max().item() for n in theirs)


def plain_trainer(model_dir: Path, shapes: Sequence[LoraShape]) -> Trainer:
    model = AdaptedModel(load_base(model_dir), shapes)
    return Trainer(model, PlainEngine(model))


def test_lanes_commit_what_the_plain_engine_trains_and_report_failures(
    cluster: None, model_dir: Path, tmp_path: Path
) -> None:
    root = str(tmp_path / "store")
    hot = job(6, RECIPE.model_copy(update={"lr": 1e30}))
    jobs = [*(job(n) for n in range(5)), hot]
    told: list[Outcome] = []
    outcomes = run_lanes(model_dir, jobs, TWO_LANES, root, "object_sft", "test", told.append)
    assert [o.key for o in outcomes] == [j.key for j in jobs] and len(told) == 6
    assert [o.ok for o in outcomes] == [True] * 5 + [False] and "learning rate" in outcomes[-1].reason

    plain: dict[str, Adapter] = {}
    train_share(
        lambda shapes: plain_trainer(model_dir, shapes),
        jobs[:5],
        lambda key, files, record: plain.__setitem__(key, read_adapter(files)),
        lambda outcome: None,
    )
    store = open_store(root)
    for number, one in enumerate(jobs[:5]):
        adapter, record = committed(store, one.key, tmp_path)
        assert gap(adapter, plain[one.key]) < 1e-5
        assert record["number"] == number and record["train_seconds"] > 0

    again = run_lanes(model_dir, jobs[:5], TWO_LANES, root, "object_sft", "test")
    assert all(o.ok and o.reason == "stood in the store" for o in again)


def test_lanes_killed_worker_loses_one_bank_at_most(cluster: None, model_dir: Path, tmp_path: Path) -> None:
    jobs = [job(n, count=60) for n in range(20, 26)]
    killed: list[int] = []

    def kill_once(outcome: Outcome) -> None:
        if not killed:
            workers = [
                p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())
            ]
            killed.append(workers[0].pid)
            workers[0].kill()

    one_lane = TWO_LANES.model_copy(update={"lanes": 1, "bank": 2})
    outcomes = run_lanes(model_dir, jobs, one_lane, str(tmp_path / "store"), "object_sft", "test", kill_once)
    assert killed and all(o.ok for o in outcomes)
    assert open_store(str(tmp_path / "store")).keys("object_sft") == {j.key for j in jobs}


def test_lanes_base_that_cannot_be_loaded_fails_every_job(cluster: None, tmp_path: Path) -> None:
    outcomes = run_lanes(
        tmp_path / "nowhere", [job(1), job(2)], TWO_LANES, str(tmp_path / "store"), "object_sft", "test"
    )
    assert not any(o.ok for o in outcomes)
    assert all("config.json is missing" in o.reason for o in outcomes)


@pytest.mark.parametrize("stage", [2, 3])
def test_meta_two_workers_equal_the_plain_engine_and_a_second_run_starts_from_the_checkpoint(
    cluster: None, model_dir: Path, tmp_path: Path, stage: Literal[2, 3]
) -> None:
    epochs, inner = [trees(1), trees(2)], trees(3)
    steps: list[tuple[int, int]] = []
    resources = Resources(meta_workers=2, cpus_per_worker=0.5, zero_stage=stage)
    shelf = StoreShelf(str(tmp_path / "store"), "b" * 64, 1000)
    result = run_meta(
        model_dir, epochs.__getitem__, META, 3, resources, "test", inner, False,
        lambda step, total, loss: steps.append((step, total)), shelf,
    )  # fmt: skip
    expected = train_meta(plain_trainer(model_dir, [LoraShape.of(META)]), epochs, META, 3, inner)
    assert np.allclose(result.losses, expected.losses, atol=1e-5)
    assert np.allclose(result.inner_losses, expected.inner_losses, atol=1e-5)
    assert gap(read_adapter(result.files), read_adapter(expected.files)) < 1e-5
    assert steps[-1] == (len(result.losses), len(result.losses))
    resumed = run_meta(model_dir, epochs, META, 3, resources, "test", inner, shelf=shelf)
    assert resumed.losses == result.losses and resumed.files == result.files


def test_meta_whose_controller_is_killed_goes_on(cluster: None, model_dir: Path, tmp_path: Path) -> None:
    epochs = [trees(seed) for seed in range(4)]
    killed: list[int] = []

    def kill_once(*_: object) -> None:
        if not killed:
            ours = psutil.Process().children(recursive=True)
            (controller,) = [p for p in ours if "TrainController" in " ".join(p.cmdline())]
            killed.append(controller.pid)
            controller.kill()

    recipe = META.model_copy(update={"epochs": 4})
    shelf = StoreShelf(str(tmp_path / "store"), "d" * 64, 1000)
    result = run_meta(
        model_dir, epochs, recipe, 3, Resources(cpus_per_worker=1), "test", on_progress=kill_once, shelf=shelf
    )
    expected = train_meta(plain_trainer(model_dir, [LoraShape.of(recipe)]), epochs, recipe, 3)
    assert killed and np.allclose(result.losses, expected.losses, atol=1e-5)


class FailsOnce(StoreShelf):
    """The first rank finds the store failing when it looks for the first time."""

    def names(self) -> list[str]:
        looked = Path(self.store_root) / "looked"
        if ray.train.get_context().get_world_rank() == 0 and not looked.exists():
            looked.parent.mkdir(parents=True, exist_ok=True)
            looked.touch()
            raise StoreError("the store does not answer")
        return StoreShelf.names(self)


def test_meta_whose_store_fails_for_one_rank_starts_again_with_all(
    cluster: None, model_dir: Path, tmp_path: Path
) -> None:
    shelf, resources = (
        FailsOnce(str(tmp_path / "store"), "e" * 64, 1000),
        Resources(meta_workers=2, cpus_per_worker=0.5),
    )
    began = time.monotonic()
    result = run_meta(model_dir, [trees(1), trees(2)], META, 3, resources, "test", shelf=shelf)
    assert time.monotonic() - began < COLLECTIVE_TIMEOUT_S / 2  # nobody waited for a rank that had left
    expected = train_meta(plain_trainer(model_dir, [LoraShape.of(META)]), [trees(1), trees(2)], META, 3)
    assert np.allclose(result.losses, expected.losses, atol=1e-5) and (tmp_path / "store" / "looked").exists()


def test_meta_that_diverges_is_a_stage_error(cluster: None, model_dir: Path) -> None:
    hot = META.model_copy(update={"lr": 1e30})
    with pytest.raises(StageError, match="learning rate"):
        run_meta(model_dir, [trees(1)] * 2, hot, 3, Resources(cpus_per_worker=1), "test")


def test_deal_jobs_balances_by_tokens() -> None:
    jobs = [job(n, count=c) for n, c in enumerate((40, 10, 10, 10, 10))]
    shares = deal_jobs(jobs, 2)
    assert sorted(len(s) for s in shares) == [1, 4]
    assert deal_jobs(jobs[:1], 3) == [[jobs[0]], [], []]
