"""How far a stage is: a bar with time left on a terminal, plain lines elsewhere. Knows nothing of what is counted.

Two stages may run at once, from threads of their own: bars stand one above the other, lines begin with their stage.
"""

import sys
import time

from tqdm import tqdm

LINE_EVERY_S = 10.0


def say(text: str) -> None:
    """One line for a person or a job's log, at once."""
    with tqdm.external_write_mode():  # bars of other stages make way
        print(text, flush=True)


class Progress:
    """Counts units of one stage. Use as a context manager."""

    def __init__(self, stage: str, total: int, units: str = "shards") -> None:
        self._stage, self._total, self._units = stage, total, units
        self._done, self._began, self._printed = 0, time.monotonic(), 0.0
        self._bar = (
            tqdm(total=total, desc=stage, unit=f" {units}", leave=False) if sys.stderr.isatty() and total else None
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
        say(f"{self._stage}: {self._done}/{self._total} {self._units}, {spent:.0f} s, {left:.0f} s left")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        spent = time.monotonic() - self._began
        say(f"{self._stage}: {self._done}/{self._total} {self._units} in {spent:.1f} s")
