"""The one training loop: rows in, adapters out. Owns data order, batches and rates; knows no Ray, store or optimizer.

A bank's members step together, each with its own rows, rate, clip and end. A member's optimizer step is a list of whole
trees; its loss is the mean over its completion tokens, over all ranks and packs alike, so the same rows give the same
step however they are packed, dealt or banked.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from metagen_ray.errors import StageError
from metagen_ray.study import Recipe
from metagen_ray.training.lora import Adapter
from metagen_ray.training.rows import Pack, Tree, pack, step_batches

OnStep = Callable[[int, int, float], None]  # (steps done, steps in all, loss of the last)


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one optimizer step. By slot: completion tokens of the whole step, and the salt of dropout."""

    packs: list[Pack]
    tokens: list[int]
    salts: list[int]


@dataclass(frozen=True, slots=True)
class Pace:
    """What one slot's update takes: its rate, and the norm its gradient is clipped at. Rate 0 changes nothing."""

    lr: float
    clip: float


class Engine(Protocol):
    """What the loop needs of whoever computes gradients and updates. One engine trains many banks in turn."""

    rank: int
    world: int
    slots: int

    def groups(self, trees: list[Tree]) -> list[list[Tree]]:
        """Trees by the pack they are read in."""
        ...

    def step(self, batch: Batch, paces: Sequence[Pace]) -> list[float]:
        """One update of every slot; their losses over all ranks before it. StageError if a gradient is not finite."""
        ...

    def reset(self, seeds: Sequence[int], weight_decays: Sequence[float]) -> None:
        """Start fresh adapters and optimizers in the first slots."""
        ...

    def snapshot(self) -> "Snapshot":
        """Where the training of the first slot stands, gathered from all ranks."""
        ...

    def restore(self, snapshot: "Snapshot", weight_decay: float) -> None:
        """Go on with the first slot from a snapshot, whatever world it was taken in."""
        ...

    def adapter(self, slot: int = 0) -> Adapter:
        """A slot's adapter, fp32 under PEFT's names, on the CPU; every rank gets it."""
        ...

    def any_rank(self, wanted: bool) -> bool:
        """Whether any rank wants it; every rank asks, and all get the same answer."""
        ...

    def agreed(self, names: Sequence[str]) -> list[str]:
        """What rank 0 brings, on every rank; every rank asks."""
        ...


@dataclass(slots=True)
class TrainLog:
    """What a training printed: the loss of every step, completion tokens trained on, seconds, epochs done.

    Seconds of a bank are divided over its members by tokens.
    """

    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    epochs: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A flat adapter, Adam's moments of it, and its count of updates; fp32 on the CPU, independent of ranks."""

    flat: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    updates: float


@dataclass(frozen=True, slots=True)
class Member:
    """One adapter of a bank: the rows of every epoch, its recipe and its seed."""

    trees: Sequence[Tree]
    recipe: Recipe
    seed: int


def train(engine: Engine, trees: Sequence[Tree], recipe: Recipe, seed: int) -> TrainLog:
    """Train one fresh adapter on the same trees in every epoch; take it with `engine.adapter()`."""
    (log,) = train_bank(engine, [Member(trees, recipe, seed)])
    return log


def train_bank(engine: Engine, members: Sequence[Member]) -> list[TrainLog]:
    """Train fresh adapters side by side, one a slot; take them with `engine.adapter(slot)`.

    StageError if a loss or gradient is not finite, ValueError if a member has no rows or there are more than slots.
    """
    if len(members) > engine.slots:
        raise ValueError(f"{len(members)} adapters for {engine.slots} slots")
    courses = [
        _Course(slot, [m.trees] * m.recipe.epochs, m.recipe, m.seed, TrainLog()) for slot, m in enumerate(members)
    ]
    start = time.perf_counter()
    engine.reset([m.seed for m in members], [m.recipe.weight_decay for m in members])
    for _ in range(max(len(course.steps) for course in courses)):
        _step(engine, [course for course in courses if not course.ended])
    seconds, tokens = time.perf_counter() - start, sum(course.log.tokens for course in courses)
    for course in courses:
        course.log.epochs, course.log.seconds = course.recipe.epochs, seconds * course.log.tokens / tokens
    return [course.log for course in courses]


def train_epochs(
    engine: Engine,
    epochs: Sequence[Sequence[Tree]],
    recipe: Recipe,
    seed: int,
    on_step: OnStep | None = None,
    after_epoch: Callable[[TrainLog], None] | None = None,
    resumed: TrainLog | None = None,
    between: Callable[[TrainLog], None] | None = None,
) -> TrainLog:
    """Train one fresh adapter, one list of trees per epoch; raises as `train_bank`.

    `after_epoch` gets the log so far, `between` the same after every step that ends no epoch. `resumed` is such a log:
    its steps are skipped, on an engine that was restored.
    """
    log = resumed or TrainLog()
    course = _Course(0, epochs, recipe, seed, log)
    start = time.perf_counter() - log.seconds
    if resumed is None:
        engine.reset([seed], [recipe.weight_decay])
    while not course.ended:
        _step(engine, [course])
        if on_step:
            on_step(len(log.losses), len(course.steps), log.losses[-1])
        log.seconds = time.perf_counter() - start
        if len(log.losses) in course.ends:
            log.epochs = course.ends.index(len(log.losses)) + 1
            if after_epoch:
                after_epoch(log)
        elif between:
            between(log)
    return log


class _Course:
    """The optimizer steps of one adapter, laid beforehand; its log says how many are done."""

    def __init__(self, slot: int, epochs: Sequence[Sequence[Tree]], recipe: Recipe, seed: int, log: TrainLog) -> None:
        self.slot, self.recipe, self.seed, self.log = slot, recipe, seed, log
        laid = [_epoch_steps(epoch, trees, recipe, seed) for epoch, trees in enumerate(epochs)]
        self.steps = [step for steps in laid for step in steps]
        self.ends = [sum(map(len, laid[: n + 1])) for n in range(len(laid))]
        if not self.steps:
            raise ValueError("no rows to train on")

    @property
    def ended(self) -> bool:
        """Whether all steps are done."""
        return len(self.log.losses) == len(self.steps)

    def next_trees(self) -> list[Tree]:
        """The trees of the next step, marked with the slot and with their places in it."""
        trees = self.steps[len(self.log.losses)]
        return [replace(tree, slot=self.slot, number=number) for number, tree in enumerate(trees)]


def _step(engine: Engine, courses: Sequence[_Course]) -> None:
    """One step of every course."""
    paces, salts = [Pace(0.0, 1.0)] * engine.slots, [0] * engine.slots
    for course in courses:
        done, recipe = len(course.log.losses), course.recipe
        paces[course.slot] = Pace(learning_rate(recipe, done, len(course.steps)), recipe.clip)
        salts[course.slot] = _mix(course.seed, done)
    batch = make_batch(engine, [tree for course in courses for tree in course.next_trees()], salts)
    losses = engine.step(batch, paces)
    for course in courses:
        loss = losses[course.slot]
        course.log.losses.append(loss)
        course.log.tokens += batch.tokens[course.slot]
        _check_loss(loss, course)


def _check_loss(loss: float, course: _Course) -> None:
    if not math.isfinite(loss):
        raise StageError(
            f"the loss became {loss} at step {len(course.log.losses)} of {len(course.steps)}; "
            f"lower the learning rate ({course.recipe.lr})"
        )


def make_batch(engine: Engine, trees: Sequence[Tree], salts: Sequence[int] = ()) -> Batch:
    """The packs of this rank. Ranks short of packs repeat one with weight 0: gradients are reduced pack by pack."""
    shares = [engine.groups(share) for share in deal(trees, engine.world)]
    packs = [pack(group) for group in shares[engine.rank]]
    missing = max(map(len, shares)) - len(packs)
    if missing:
        idle = replace(packs[-1] if packs else pack([min(trees, key=Tree.read_tokens)]), weight=0.0)
        packs += [idle] * missing
    tokens = [0] * engine.slots
    for tree in trees:
        tokens[tree.slot] += tree.completion_tokens()
    return Batch(packs, tokens, list(salts))


def deal(trees: Sequence[Tree], world: int) -> list[list[Tree]]:
    """Trees to ranks, the largest first to whoever has least; fewer trees than ranks are cut between their branches."""
    if world == 1:
        return [list(trees)]
    pieces = list(trees)
    while len(pieces) < world:
        widest = max(pieces, key=lambda t: len(t.branches))
        halves = widest.cut()
        if len(halves) == 1:
            break
        pieces.remove(widest)
        pieces += halves
    shares: list[list[Tree]] = [[] for _ in range(world)]
    load = [0] * world
    for tree in sorted(pieces, key=Tree.read_tokens, reverse=True):
        least = load.index(min(load))
        shares[least].append(tree)
        load[least] += tree.read_tokens()
    return shares


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of step 0..steps-1: linear warm-up from 0, then constant or a decay to 0, as Hugging Face has them."""
    warmup = math.ceil(recipe.warmup_share * steps)
    if step < warmup:
        return recipe.lr * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if recipe.schedule == "linear":
        return recipe.lr * (1 - progress)
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.lr


def _epoch_steps(epoch: int, trees: Sequence[Tree], recipe: Recipe, seed: int) -> list[list[Tree]]:
    order = np.random.default_rng([seed, epoch]).permutation(len(trees))
    return list(step_batches(trees, order.tolist(), recipe.batch_rows))


def _mix(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
