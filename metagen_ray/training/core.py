"""The one training loop: rows in, adapter out. Owns data order, batches and rates; knows no Ray, store or optimizer.

An optimizer step is a list of whole trees. Its loss is the mean over its completion tokens, over all ranks and packs
alike, so the same rows give the same step however they are packed or dealt.
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
    """One rank's part of one optimizer step; `tokens` counts the completion tokens of the whole step."""

    packs: list[Pack]
    tokens: int


class Engine(Protocol):
    """What the loop needs of whoever computes gradients and updates. One engine trains many adapters in turn."""

    rank: int
    world: int

    def groups(self, trees: list[Tree]) -> list[list[Tree]]:
        """Trees by the pack they are read in."""
        ...

    def step(self, batch: Batch, lr: float, clip: float) -> float:
        """One update; the loss over all ranks before it."""
        ...

    def reset(self, seed: int, weight_decay: float) -> None:
        """Start a fresh adapter and optimizer."""
        ...

    def snapshot(self) -> "Snapshot":
        """Where the training stands, gathered from all ranks."""
        ...

    def restore(self, snapshot: "Snapshot", weight_decay: float) -> None:
        """Go on from a snapshot, whatever world it was taken in."""
        ...

    def adapter(self) -> Adapter:
        """The adapter, fp32 under PEFT's names, on the CPU; every rank gets it."""
        ...


@dataclass(slots=True)
class TrainLog:
    """What a training printed: the loss of every step, completion tokens trained on, seconds, epochs done."""

    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    epochs: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The flat adapter, Adam's moments of it, and its count of updates; fp32 on the CPU, independent of ranks."""

    flat: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    updates: float


def train(engine: Engine, trees: Sequence[Tree], recipe: Recipe, seed: int, on_step: OnStep | None = None) -> TrainLog:
    """Train a fresh adapter on the same trees in every epoch; take it with `engine.adapter()`."""
    return train_epochs(engine, [trees] * recipe.epochs, recipe, seed, on_step)


def train_epochs(
    engine: Engine,
    epochs: Sequence[Sequence[Tree]],
    recipe: Recipe,
    seed: int,
    on_step: OnStep | None = None,
    after_epoch: Callable[[TrainLog], None] | None = None,
    resumed: TrainLog | None = None,
) -> TrainLog:
    """Train a fresh adapter, one list of trees per epoch. StageError if a loss is not finite, ValueError if no rows.

    `after_epoch` gets the log so far. `resumed` is such a log: its epochs are skipped, on an engine that was restored.
    """
    laid = [_epoch_steps(epoch, trees, recipe, seed) for epoch, trees in enumerate(epochs)]
    steps = sum(map(len, laid))
    if not steps:
        raise ValueError("no rows to train on")
    log = resumed or TrainLog()
    start = time.perf_counter() - log.seconds
    if resumed is None:
        engine.reset(seed, recipe.weight_decay)
    for epoch in range(log.epochs, len(laid)):
        torch.manual_seed(
            _mix(seed, engine.rank, epoch)
        )  # dropout; row order and first weights have seeds of their own
        for trees in laid[epoch]:
            batch = make_batch(engine, trees)
            loss = engine.step(batch, learning_rate(recipe, len(log.losses), steps), recipe.clip)
            _check_loss(loss, len(log.losses) + 1, steps, recipe)
            log.losses.append(loss)
            log.tokens += batch.tokens
            if on_step:
                on_step(len(log.losses), steps, loss)
        log.epochs, log.seconds = epoch + 1, time.perf_counter() - start
        if after_epoch:
            after_epoch(log)
    return log


def _check_loss(loss: float, step: int, steps: int, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise StageError(f"the loss became {loss} at step {step} of {steps}; lower the learning rate ({recipe.lr})")


def make_batch(engine: Engine, trees: list[Tree]) -> Batch:
    """The packs of this rank. Ranks short of packs repeat one with weight 0: gradients are reduced pack by pack."""
    shares = [engine.groups(share) for share in deal(trees, engine.world)]
    packs = [pack(group) for group in shares[engine.rank]]
    missing = max(map(len, shares)) - len(packs)
    if missing:
        idle = replace(packs[-1] if packs else pack([min(trees, key=Tree.read_tokens)]), weight=0.0)
        packs += [idle] * missing
    return Batch(packs, sum(tree.completion_tokens() for tree in trees))


def deal(trees: Sequence[Tree], world: int) -> list[list[Tree]]:
    """Trees to ranks, the largest first to whoever has least; fewer trees than ranks are cut between their branches."""
    if world == 1:
        return [list(trees)]
    pieces = list(trees)
    while len(pieces) < world:
        widest = max(pieces, key=lambda t: len(t.branches))
        middle = len(widest.branches) // 2
        if not middle:
            break
        pieces.remove(widest)
        pieces += [
            Tree(widest.prefix, widest.branches[:middle]),
            Tree(widest.prefix, widest.branches[middle:]),
        ]
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
