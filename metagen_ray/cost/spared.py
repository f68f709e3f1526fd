"""What predictions spare: fine-tunes not run, against what the predictor has cost. Definitions are in docs/cost.md."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metagen_ray.cost.roofline import Machine
from metagen_ray.cost.units import Unit
from metagen_ray.cost.work import Work


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens that pass through the model and their FLOPs."""

    tokens: float
    flops: float


@dataclass(frozen=True, slots=True)
class Spared:
    """`paid_fine_tunes` object-SFTs with their answers and one meta-SFT bought the predictor (`paid`); it has foreseen
    `foreseen` datasets without their fine-tunes. `predicted` is one dataset foreseen, `fine_tuned` the same dataset
    fine-tuned and asked the same questions as often.
    """

    paid_fine_tunes: int
    foreseen: int
    paid: Cost
    predicted: Cost
    fine_tuned: Cost

    @property
    def per_prediction(self) -> float:
        """Fine-tunes not run per fine-tune paid for, over the datasets foreseen so far."""
        return self.foreseen / self.paid_fine_tunes

    @property
    def break_even(self) -> int | None:
        """New datasets from which on the predictor has cost fewer FLOPs than fine-tunes; None if never."""
        gain = self.fine_tuned.flops - self.predicted.flops
        return math.ceil(self.paid.flops / gain) if gain > 0 else None


def cost_of(units: Sequence[Unit], machine: Machine) -> Cost:
    """Tokens and FLOPs of units."""
    tokens = sum((unit.work for unit in units), Work()).tokens
    return Cost(tokens, sum(p.flops for unit in units for p in machine.phases(unit.work, unit.adapter)))


def per(cost: Cost, count: int) -> Cost:
    """The mean of `count`."""
    return Cost(cost.tokens / count, cost.flops / count)
