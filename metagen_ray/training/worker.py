"""What one training process does: a share of adapters in banks, or its part of meta-SFT. Knows no Ray and no store.

The caller brings `commit` and `tell` as plain callables, so the same loops serve Ray Train, a bare GPU box and tests.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metagen_ray.cost.bank import cut_banks
from metagen_ray.errors import UserError
from metagen_ray.study import Recipe
from metagen_ray.training.base import AdaptedModel
from metagen_ray.training.core import Engine, Member, OnStep, TrainLog, train_bank, train_epochs
from metagen_ray.training.lora import Adapter, LoraShape
from metagen_ray.training.rows import Tree
from metagen_ray.training.score import mean_loss
from metagen_ray.training.stand import Shelf, Stand, load_stand

Files = dict[str, bytes]
Commit = Callable[[str, Files, Mapping[str, Any]], object]  # (key, files, record)
LOOK_S = 5.0  # between two questions whether a node is about to go


@dataclass(frozen=True, slots=True)
class AdapterJob:
    """One fine-tune: what it trains on and how; `record` is stored beside the adapter under `key`."""

    key: str
    trees: list[Tree]
    recipe: Recipe
    seed: int
    record: Mapping[str, Any] = field(default_factory=dict)

    def cost(self) -> int:
        """Tokens it reads in all epochs: what the lanes are balanced by."""
        return self.recipe.epochs * sum(tree.read_tokens() for tree in self.trees)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended; `reason` says why it failed, or that it stood in the store already."""

    key: str
    ok: bool
    reason: str = ""
    seconds: float = 0.0
    losses: tuple[float, ...] = ()
    tokens: int = 0


class Trainer:
    """The engine and the model behind it; one per process and LoRA shape."""

    def __init__(self, model: AdaptedModel, engine: Engine) -> None:
        self.model = model
        self.engine = engine

    def files(self, adapter: Adapter, slot: int = 0) -> Files:
        """An adapter as the files that are stored."""
        return self.model.slots[slot].files(adapter)


MakeTrainer = Callable[[Sequence[LoraShape]], Trainer]


def train_share(
    make_trainer: MakeTrainer,
    jobs: Sequence[AdapterJob],
    commit: Commit,
    tell: Callable[[Outcome], None],
    is_done: Callable[[str], bool] = lambda key: False,
    bank: int = 1,
) -> list[Outcome]:
    """Train jobs in banks of `bank` adapters on one trainer per LoRA shape; every rank runs the same, rank 0 commits.

    A failed job is an outcome. Where peers wait for this process, its own breakdown (memory, a lost peer) is raised.
    """
    outcomes = []

    def finish(outcome: Outcome) -> None:
        outcomes.append(outcome)
        tell(outcome)

    for job in jobs:
        if is_done(job.key):
            finish(Outcome(job.key, True, "stood in the store"))
    for same in _by_shape([job for job in jobs if not is_done(job.key)]):
        banks = make_banks(same, bank)
        shapes = [LoraShape.of(same[0].recipe)] * max(map(len, banks))
        lane = _Lane(lambda shapes=shapes: make_trainer(shapes), commit, finish)
        for members in banks:
            lane.train(members)
    return outcomes


def make_banks(jobs: Sequence[AdapterJob], bank: int) -> list[list[AdapterJob]]:
    """Jobs in banks of at most `bank`, as even as they can be; those of like length together, as a bank ends with its
    longest member.
    """
    ordered = sorted(jobs, key=AdapterJob.cost, reverse=True)
    return [[ordered[n] for n in members] for members in cut_banks(range(len(ordered)), bank)]


def _by_shape(jobs: Sequence[AdapterJob]) -> list[list[AdapterJob]]:
    found: dict[LoraShape, list[AdapterJob]] = {}
    for job in jobs:
        found.setdefault(LoraShape.of(job.recipe), []).append(job)
    return list(found.values())


class _Lane:
    """Banks of one shape on one trainer, which is made when the first one needs it."""

    def __init__(self, make: Callable[[], Trainer], commit: Commit, tell: Callable[[Outcome], None]) -> None:
        self.make, self.commit, self.tell = make, commit, tell
        self.trainer: Trainer | None = None

    def train(self, jobs: Sequence[AdapterJob]) -> None:
        """Train and commit a bank. One that breaks is halved, until what breaks it stands alone and fails alone."""
        start = time.perf_counter()
        survivable: tuple[type[Exception], ...] = (UserError,)
        try:
            self.trainer = self.trainer or self.make()
            # Bad rows fail on every rank alike; running out of memory may not, and the others would wait.
            survivable += (ValueError, RuntimeError) if self.trainer.engine.world == 1 else (ValueError,)
            logs = train_bank(self.trainer.engine, [Member(j.trees, j.recipe, j.seed) for j in jobs])
        except survivable as error:
            if len(jobs) == 1 or self.trainer is None:
                for job in jobs:
                    self.tell(Outcome(job.key, False, _reason(error), time.perf_counter() - start))
                return
            middle = len(jobs) // 2
            self.train(jobs[:middle])
            self.train(jobs[middle:])
            return
        for slot, (job, log) in enumerate(zip(jobs, logs, strict=True)):
            self.tell(self._committed(job, slot, log, len(jobs)))

    def _committed(self, job: AdapterJob, slot: int, log: TrainLog, bank: int) -> Outcome:
        assert self.trainer is not None
        adapter = self.trainer.engine.adapter(slot)
        numbers = {"train_seconds": log.seconds, "train_tokens": log.tokens, "last_loss": log.losses[-1], "bank": bank}
        try:
            if self.trainer.engine.rank == 0:
                self.commit(job.key, self.trainer.files(adapter, slot), {**job.record, **numbers})
        except UserError as error:
            return Outcome(job.key, False, _reason(error), log.seconds)
        return Outcome(job.key, True, "", log.seconds, tuple(log.losses), log.tokens)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


@dataclass(frozen=True, slots=True)
class MetaResult:
    """A trained meta adapter and its log.

    `inner_losses` is the loss on the held-out trees after each epoch; `epoch` the one whose adapter this is, from 1.
    `resumed` is after how many steps it went on; `nodes` are those of its workers by rank, where the caller knows them.
    """

    files: Files
    epoch: int
    losses: list[float]
    inner_losses: list[float]
    tokens: int
    seconds: float
    resumed: int = 0
    nodes: tuple[str, ...] = ()


def train_meta(
    trainer: Trainer,
    epochs: Sequence[Sequence[Tree]],
    recipe: Recipe,
    seed: int,
    inner_trees: Sequence[Tree] = (),
    keep_best: bool = False,
    on_step: OnStep | None = None,
    shelf: Shelf | None = None,
    warned: Callable[[], bool] = lambda: False,
) -> MetaResult:
    """One long training, fresh trees in every epoch; `keep_best` returns the epoch of the lowest inner loss.

    With a `shelf` it is saved after every epoch and whenever the shelf says so, and goes on from what lies there.
    `warned` says whether one of its nodes is about to be taken away; all ranks ask together, every LOOK_S, and from
    then on it is saved often.
    """
    if keep_best and not inner_trees:
        raise ValueError("keep_best chooses by the loss on inner_trees; give some")
    engine = trainer.engine
    stand = load_stand(shelf, engine)
    if stand is not None:
        engine.restore(stand.snapshot, recipe.weight_decay)
    inner = stand.inner_losses if stand else []
    kept = [(stand.kept_epoch, stand.kept)] if stand and stand.kept_epoch else []

    def save(log: TrainLog) -> None:
        now = Stand(engine.snapshot(), log, inner, *(kept[0] if kept else (0, {})))
        if shelf and engine.rank == 0:
            shelf.save(len(log.losses), now.files())

    looked = time.monotonic()

    def between(log: TrainLog) -> None:
        nonlocal looked
        first = engine.rank == 0
        if not shelf or not engine.any_rank(first and (shelf.due() or time.monotonic() - looked > LOOK_S)):
            return
        looked = time.monotonic()
        if warned():
            shelf.hurry()
        if engine.any_rank(first and shelf.due()):
            save(log)

    def after_epoch(log: TrainLog) -> None:
        if inner_trees:
            inner.append(mean_loss(trainer.model, inner_trees))
        if not keep_best or not kept or inner[-1] <= min(inner):
            kept[:] = [(log.epochs, engine.adapter())]
        if shelf:
            save(log)

    resumed = len(stand.log.losses) if stand else 0
    log = train_epochs(engine, epochs, recipe, seed, on_step, after_epoch, stand.log if stand else None, between)
    epoch, adapter = kept[0]
    return MetaResult(trainer.files(adapter), epoch, log.losses, inner, log.tokens, log.seconds, resumed)


def throttled(on_step: OnStep, every_s: float = 0.5) -> OnStep:
    """The same callback, called at most every `every_s` and at the last step."""
    last = -math.inf

    def call(step: int, steps: int, loss: float) -> None:
        nonlocal last
        if step == steps or time.monotonic() - last >= every_s:
            last = time.monotonic()
            on_step(step, steps, loss)

    return call
