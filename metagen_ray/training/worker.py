"""What one training process does: a share of adapters in turn, or its part of meta-SFT. Knows no Ray and no store.

The caller brings `commit` and `tell` as plain callables, so the same loops serve Ray Train, a bare GPU box and tests.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metagen_ray.errors import UserError
from metagen_ray.study import Recipe
from metagen_ray.training.base import AdaptedModel
from metagen_ray.training.core import Engine, OnStep, TrainLog, train, train_epochs
from metagen_ray.training.lora import Adapter, LoraShape
from metagen_ray.training.rows import Tree
from metagen_ray.training.score import mean_loss
from metagen_ray.training.stand import Shelf, Stand, load_stand

Files = dict[str, bytes]
Commit = Callable[[str, Files, Mapping[str, Any]], object]  # (key, files, record)


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


class Trainer:
    """The engine and the model behind it; one per process and LoRA shape."""

    def __init__(self, model: AdaptedModel, engine: Engine) -> None:
        self.model = model
        self.engine = engine

    def files(self, adapter: Adapter) -> Files:
        """An adapter as the files that are stored."""
        return self.model.slots.files(adapter)


def train_share(
    make_trainer: Callable[[LoraShape], Trainer],
    jobs: Sequence[AdapterJob],
    commit: Commit,
    tell: Callable[[Outcome], None],
    is_done: Callable[[str], bool] = lambda key: False,
) -> list[Outcome]:
    """Train jobs one after another on one trainer per LoRA shape; every rank runs the same jobs, rank 0 commits.

    A failed job is an outcome. Where peers wait for this process, its own breakdown (memory, a lost peer) is raised.
    """
    outcomes = []
    trainers: dict[LoraShape, Trainer] = {}  # one at a time: the base of the last shape makes room for the next
    for job in sorted(jobs, key=lambda j: repr(LoraShape.of(j.recipe))):
        if is_done(job.key):
            outcome = Outcome(job.key, True, "stood in the store")
        else:
            outcome = _outcome(make_trainer, trainers, job, commit)
        outcomes.append(outcome)
        tell(outcome)
    return outcomes


def _outcome(
    make_trainer: Callable[[LoraShape], Trainer], trainers: dict[LoraShape, Trainer], job: AdapterJob, commit: Commit
) -> Outcome:
    start, shape = time.perf_counter(), LoraShape.of(job.recipe)
    survivable: tuple[type[Exception], ...] = (UserError,)
    try:
        if shape not in trainers:
            trainers.clear()
            trainers[shape] = make_trainer(shape)
        # Bad rows fail on every rank alike; running out of memory may not, and the others would wait.
        survivable += (ValueError, RuntimeError) if trainers[shape].engine.world == 1 else (ValueError,)
        losses = _train_one(trainers[shape], job, commit)
    except survivable as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        return Outcome(job.key, False, reason, time.perf_counter() - start)
    return Outcome(job.key, True, "", time.perf_counter() - start, tuple(losses))


def _train_one(trainer: Trainer, job: AdapterJob, commit: Commit) -> list[float]:
    log = train(trainer.engine, job.trees, job.recipe, job.seed)
    adapter = trainer.engine.adapter()
    if trainer.engine.rank == 0:
        numbers = {"train_seconds": log.seconds, "train_tokens": log.tokens, "last_loss": log.losses[-1]}
        commit(job.key, trainer.files(adapter), {**job.record, **numbers})
    return log.losses


@dataclass(frozen=True, slots=True)
class MetaResult:
    """A trained meta adapter and its log.

    `inner_losses` is the loss on the held-out trees after each epoch; `epoch` the one whose adapter this is, from 1.
    """

    files: Files
    epoch: int
    losses: list[float]
    inner_losses: list[float]
    tokens: int
    seconds: float


def train_meta(
    trainer: Trainer,
    epochs: Sequence[Sequence[Tree]],
    recipe: Recipe,
    seed: int,
    inner_trees: Sequence[Tree] = (),
    keep_best: bool = False,
    on_step: OnStep | None = None,
    shelf: Shelf | None = None,
) -> MetaResult:
    """One long training, fresh trees in every epoch; `keep_best` returns the epoch of the lowest inner loss.

    With a `shelf` it is saved after every epoch, and goes on from what lies there.
    """
    if keep_best and not inner_trees:
        raise ValueError("keep_best chooses by the loss on inner_trees; give some")
    engine = trainer.engine
    stand = load_stand(shelf)
    if stand is not None:
        engine.restore(stand.snapshot, recipe.weight_decay)
    inner = stand.inner_losses if stand else []
    kept = [(stand.kept_epoch, stand.kept)] if stand else []

    def after_epoch(log: TrainLog) -> None:
        if inner_trees:
            inner.append(mean_loss(trainer.model, inner_trees))
        if not keep_best or not kept or inner[-1] <= min(inner):
            kept[:] = [(log.epochs, engine.adapter())]
        if shelf:
            now = Stand(engine.snapshot(), log, inner, *kept[0])
            if engine.rank == 0:
                shelf.save(log.epochs, now.files())

    log = train_epochs(engine, epochs, recipe, seed, on_step, after_epoch, stand.log if stand else None)
    epoch, adapter = kept[0]
    return MetaResult(trainer.files(adapter), epoch, log.losses, inner, log.tokens, log.seconds)


def throttled(on_step: OnStep, every_s: float = 0.5) -> OnStep:
    """The same callback, called at most every `every_s` and at the last step."""
    last = -math.inf

    def call(step: int, steps: int, loss: float) -> None:
        nonlocal last
        if step == steps or time.monotonic() - last >= every_s:
            last = time.monotonic()
            on_step(step, steps, loss)

    return call
