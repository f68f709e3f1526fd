"""What a run writes down while it works: seconds and figures by stage, a word for every shard, its progress."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from metagen_ray.progress import Progress, tell
from metagen_ray.stages.curves import Curves
from metagen_ray.stages.meter import Meter, gpus_of
from metagen_ray.stages.plan import Plan
from metagen_ray.stages.pulse import Pulse

PACKAGES = ("ray", "torch", "transformers", "peft", "deepspeed", "numpy", "pyarrow")


@dataclass
class Ledger:
    """Seconds and figures by stage; stands beside the results. The pulse tells others of them meanwhile.

    `curves` takes the losses of trainings.
    """

    pulse: Pulse
    curves: Curves
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    given_up: dict[tuple[str, str], str] = field(default_factory=dict)  # (stage, key) -> why

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, float]]:
        """Time a stage; figures put into the yielded dict are kept."""
        began, figures = time.monotonic(), {}
        try:
            yield figures
        finally:
            self.stages[name] = {"seconds": round(time.monotonic() - began, 2), **figures}

    def given_up_lines(self) -> list[str]:
        """What was given up and why, for a person."""
        return [f"{stage} {key[:12]}: {reason}" for (stage, key), reason in self.given_up.items()]


def versions() -> dict[str, str]:
    """Versions that stand beside every result."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


class Batches:
    """The batches of one asked stage: one line of progress and one entry of the ledger for all of them."""

    def __init__(self, plan: Plan, ledger: Ledger, name: str, total: int) -> None:
        self._ledger, self._name, self._left = ledger, name, total
        self._meter = meter_of(plan, ledger, name, total)
        self._open = ExitStack()
        self._figures: dict[str, float] = {}
        self._progress: Progress | None = None

    @contextmanager
    def batch(self, count: int, wanted: Callable[[], None]) -> Iterator[Callable[[dict[str, Any]], None]]:
        """What to call with each outcome; the stage ends with its last batch, or with one that fails."""
        if self._progress is None:
            self._figures = self._open.enter_context(self._ledger.stage(self._name))
            self._progress = self._open.enter_context(Progress(self._name, self._left))
            self._figures["busy_seconds"] = 0.0
        began, whole = time.monotonic(), False
        try:
            yield counted(self._figures, self._progress, self._meter, wanted)
            whole = True
        finally:
            self._figures["busy_seconds"] += round(time.monotonic() - began, 2)
            self._left -= count
            if not whole or self._left <= 0:
                self._open.close()


def meter_of(plan: Plan, ledger: Ledger, stage: str, shards: int) -> Meter:
    """The meter of a stage with so many shards to do."""
    return Meter(plan.study.run_name(), stage, shards, gpus_of(stage, plan.study.resources), ledger.pulse)


def tell_shard(stage: str, shard: str, reason: str, seconds: float, **figures: float) -> None:
    """A shard's end in the log; `reason` says why it failed, and is empty where it did not."""
    outcome = {"stage": stage, "shard": shard, "seconds": round(seconds, 3)}
    tell("shard failed" if reason else "shard committed", **outcome, **({"reason": reason} if reason else figures))


def counted(
    figures: dict[str, float], progress: Progress, meter: Meter, wanted: Callable[[], None] = lambda: None
) -> Callable[[dict[str, Any]], None]:
    """What to call with the outcome of each shard: it is told, metered and added to the stage's figures."""

    def on_outcome(outcome: dict[str, Any]) -> None:
        tell_shard(meter.stage, outcome["key"], outcome["reason"], outcome["seconds"], **outcome["figures"])
        if not outcome["reason"]:  # else it is tried again
            progress.advance()
            meter.outcome(True, outcome["figures"])
        for name, value in outcome["figures"].items():
            figures[name] = figures.get(name, 0) + value
        wanted()

    return on_outcome
