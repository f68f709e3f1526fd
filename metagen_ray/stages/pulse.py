"""The pulse of a run: what its driver does and how fast, written beside the run every few seconds. Decides nothing.

Whoever reaches the store reads it (`metagen status`). A pulse that cannot be written is left out: what watches over the
driver is its lease.
"""

import contextlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from metagen_ray.errors import StoreError
from metagen_ray.store import Store

EVERY_S = 5.0
SILENT_S = 60.0  # a driver that has not written for so long is taken for gone


@dataclass(slots=True)
class StagePulse:
    """One stage as this driver has seen it; `seconds` since it began, to its end or to now."""

    planned: int
    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    running: bool = True


class Pulse:
    """Counts what stages tell and writes it in a thread, from `with` to its end."""

    def __init__(self, store: Store, run: str, driver: str) -> None:
        self._store, self._path = store, pulse_path(run)
        self._head = {"driver": driver, "began": _now()}
        self._stages: dict[str, StagePulse] = {}
        self._began: dict[str, float] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._write("running")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(EVERY_S)
        self._write("finished" if kind is None else f"ended: {str(error) or kind.__name__}"[:500])

    def begin(self, stage: str, planned: int) -> None:
        """A stage begins, with so many shards to do."""
        with self._lock:
            self._stages[stage] = StagePulse(planned)
            self._began[stage] = time.monotonic()

    def outcome(self, stage: str, ok: bool) -> None:
        """A shard of it has ended; the stage with its last one."""
        with self._lock:
            told = self._stages[stage]
            told.done, told.failed = told.done + ok, told.failed + (not ok)
            self._clock(stage)
            told.running = told.done + told.failed < told.planned

    def _clock(self, stage: str) -> None:
        if self._stages[stage].running:
            self._stages[stage].seconds = round(time.monotonic() - self._began[stage], 1)

    def _beat(self) -> None:
        while not self._over.wait(EVERY_S):
            self._write("running")

    def _write(self, state: str) -> None:
        with self._lock:
            for stage in self._stages:
                self._clock(stage)
            stages = {name: asdict(told) for name, told in self._stages.items()}
        pulse = {**self._head, "written": _now(), "state": state, "stages": stages}
        with contextlib.suppress(StoreError):
            self._store.write_doc(self._path, json.dumps(pulse, indent=1).encode())


def read_pulse(store: Store, run: str) -> dict[str, Any] | None:
    """The last pulse of a run; None where there is none, or none that a driver wrote."""
    try:
        found = json.loads(store.read_doc(pulse_path(run)))
        age = datetime.now(UTC) - datetime.fromisoformat(found["written"])
        stages = [StagePulse(**told) for told in found["stages"].values()]
        numbers = [n for t in stages for n in (t.planned, t.done, t.failed, t.seconds)]
        sound = all(isinstance(n, int | float) and 0 <= n < 1e12 for n in [*numbers, abs(age.total_seconds())])
        return found if sound and all(isinstance(found[name], str) for name in ("driver", "state")) else None
    except (StoreError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def driver_line(pulse: Mapping[str, Any] | None) -> str:
    """Who runs the study and when it was heard of last, in words."""
    if pulse is None:
        return "no driver has written here"
    age = (datetime.now(UTC) - datetime.fromisoformat(pulse["written"])).total_seconds()
    heard = f"last word {pulse['written']}, {age:.0f} s ago"
    if pulse["state"] == "running" and age > SILENT_S:
        return f"driver {pulse['driver']} is silent ({heard}); it may be gone: run the study again to go on"
    return f"driver {pulse['driver']}: {pulse['state']} ({heard})"


def pace(told: Mapping[str, Any] | None, missing: int) -> tuple[str, str]:
    """Shards a minute, and the time left at that pace, in words; blank where nothing is known."""
    if not told or not told["done"] or not told["seconds"]:
        return "", ""
    a_minute = 60 * told["done"] / told["seconds"]
    return f"{a_minute:.1f}/min", _span(60 * missing / a_minute) if missing else ""


def pulse_path(run: str) -> str:
    """Where the pulse of a run lies."""
    return f"studies/{run}/pulse.json"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
