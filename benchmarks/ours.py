"""Our training as the benchmarks call it: a bank of adapters that train together, or one adapter at a time."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.bases import Base
from metagen_ray.study import Recipe
from metagen_ray.training.base import AdaptedModel
from metagen_ray.training.core import Member, TrainLog, train_bank
from metagen_ray.training.lora import Adapter, LoraShape
from metagen_ray.training.rows import Tree, pack

Job = tuple[list[Tree], int]  # rows and seed of one fine-tune


class Ours:
    """One model and one engine that stay loaded, as a lane's do; `slots` adapters train at once.

    The engine is DeepSpeed with ZeRO 1, as in a study, where it is installed; else plain torch.
    """

    def __init__(self, base: Base, recipe: Recipe, slots: int) -> None:
        self.recipe = recipe
        self.slots = slots
        self.model = AdaptedModel(base.load(), [LoraShape.of(recipe)] * slots, base.device)
        self.engine, self.engine_name = _engine(self.model)
        self.adapters: list[Adapter] = []
        self.logs: list[TrainLog] = []

    def train(self, jobs: Sequence[Job]) -> None:
        """Train all jobs, a bank at a time."""
        self.adapters, self.logs = [], []
        for start in range(0, len(jobs), self.slots):
            bank = jobs[start : start + self.slots]
            self.logs += train_bank(self.engine, [Member(trees, self.recipe, seed) for trees, seed in bank])
            self.adapters += [self.engine.adapter(slot) for slot in range(len(bank))]

    def start(self, seed: int) -> Adapter:
        """The weights from which the adapter of this seed starts."""
        slots = self.model.slots[0]
        return slots.named(slots.initial(seed))


def gradient(base: Base, recipe: Recipe, trees: list[Tree], start: Adapter) -> Adapter:
    """The gradient of one step on these trees at these weights, under PEFT's names."""
    model = AdaptedModel(base.load(), [LoraShape.of(recipe)], base.device)
    slots, flat = model.slots[0], model.flats[0]
    with torch.no_grad():
        flat.copy_(slots.flat(start))
    tokens = sum(tree.completion_tokens() for tree in trees)
    for group in model.groups(trees):
        (model(pack(group)).sum() / tokens).backward()
    return slots.named(flat.grad)


def _engine(model: AdaptedModel) -> tuple[Any, str]:
    if importlib.util.find_spec("deepspeed") is None:
        from metagen_ray.training.plain import PlainEngine

        return PlainEngine(model), "plain torch"
    from metagen_ray.training.zero import DeepSpeedEngine, start_alone

    start_alone()
    return DeepSpeedEngine(model, zero_stage=1), "DeepSpeed, ZeRO 1"
