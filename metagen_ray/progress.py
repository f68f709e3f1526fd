"""How far a stage is: a bar with time left on a terminal, plain lines elsewhere. Knows nothing of what is counted.

Two stages may run at once, from threads of their own: bars stand one above the other, lines begin with their stage.
With METAGEN_LOG=json each line is a JSON object instead, and single shards have lines too.
"""

import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 10.0
FORMAT = "METAGEN_LOG"
_about: dict[str, str] = {}


def about(**names: str) -> None:
    """What all lines of this process are about from now on: the run."""
    _about.update(names)


def as_json() -> bool:
    """Whether programs read the lines."""
    return os.environ.get(FORMAT) == "json"


def say(text: str, **fields: Any) -> None:
    """One line for a person or a job's log, at once; `fields` stand beside it in JSON."""
    if as_json():
        return tell(text, **fields)
    with tqdm.external_write_mode():  # bars of other stages make way
        print(text, flush=True)


def tell(message: str, **fields: Any) -> None:
    """One line for programs alone: of a shard there is no line for a person."""
    if as_json():
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        print(json.dumps({"time": now, "message": message, **_about, **fields}), flush=True)


class Progress:
    """Counts units of one stage. Use as a context manager."""

    def __init__(self, stage: str, total: int, units: str = "shards") -> None:
        self._stage, self._total, self._units = stage, total, units
        self._done, self._began, self._printed = 0, time.monotonic(), 0.0
        self._bar = (
            tqdm(total=total, desc=stage, unit=f" {units}", leave=False)
            if sys.stderr.isatty() and total and not as_json()
            else None
        )

    def advance(self, count: int = 1) -> None:
        """Count finished units; from a terminal's bar or, every few seconds, a line."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._printed > LINE_EVERY_S:
            self._line()

    def _line(self) -> None:
        self._printed = time.monotonic()
        spent = self._printed - self._began
        left = spent / self._done * (self._total - self._done) if self._done else float("nan")
        self._say(f", {spent:.0f} s, {left:.0f} s left", spent)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        spent = time.monotonic() - self._began
        self._say(f" in {spent:.1f} s", spent)

    def _say(self, how_long: str, seconds: float) -> None:
        figures = {"stage": self._stage, "done": self._done, "planned": self._total, "seconds": round(seconds, 2)}
        say(f"{self._stage}: {self._done}/{self._total} {self._units}{how_long}", **figures)
