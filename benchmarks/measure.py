"""How a benchmark measures: sides in turn, round after round; ratios with their spread; one JSON line a figure.

Owns the line's fields. Knows no model and no peer.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ROUNDS = 5
MEASURED = ("row", "size", "ours", "peer", "ratio", "low", "high", "parity", "peak_share")
ADDED = ("machine", "threads", "commit", "date")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """How a row is measured. `quick` is a smoke check of minutes: small and few, figures that mean nothing."""

    sizes: tuple[str, ...]
    quick: bool = False

    @property
    def rounds(self) -> int:
        """Rounds after the warm-up."""
        return 2 if self.quick else ROUNDS


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster: the median of the rounds, their smallest and their largest."""

    median: float
    low: float
    high: float


def interleave(sides: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of every side by round: each once to warm up, then all of them in turn, `rounds` times.

    What drifts while it is measured (clock, neighbours, caches) so falls on all sides alike.
    """
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(timed(side))
    return seconds


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call; waits for a GPU's queue before and after."""
    settle()
    began = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - began


def fastest(candidates: Mapping[str, Callable[[], object]]) -> str:
    """Name of the candidate that takes least, each once to warm up and twice by the clock: a peer's best setting."""
    seconds = interleave(candidates, rounds=2)
    return min(seconds, key=lambda name: min(seconds[name]))


def settle() -> None:
    """Wait until a GPU has done what it was given."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def rates(seconds: Sequence[float], units: float) -> list[float]:
    """Units a second, by round."""
    return [units / s for s in seconds]


def ratio_of(ours: Sequence[float], peer: Sequence[float]) -> Ratio:
    """Ours over the peer, round by round. ValueError where the rounds do not pair."""
    by_round = [a / b for a, b in zip(ours, peer, strict=True)]
    return Ratio(statistics.median(by_round), min(by_round), max(by_round))


def compared(
    row: int,
    size: str,
    what: str,
    against: str,
    unit: str,
    ours: Sequence[float],
    peer: Sequence[float],
    *,
    parity: float | None = None,
    parity_of: str = "",
    peak_share: float | None = None,
    aim: float | None = None,
    **more: Any,
) -> Row:
    """One line of the table: rates of ours and of a peer, by round. `parity_of` says what the number compares."""
    ratio = ratio_of(ours, peer)
    return {
        "row": row,
        "size": size,
        "what": what,
        "against": against,
        "unit": unit,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "rounds": len(ours),
        "parity": parity,
        "parity_of": parity_of,
        "peak_share": peak_share,
        "aim": aim,
        **more,
    }


def append_row(path: Path, row: Row) -> Row:
    """Append a figure as one JSON line, with machine, commit and date where it has none; returns the line's content.

    ValueError where a field of MEASURED is missing. Numbers keep four digits.
    """
    missing = [name for name in MEASURED if name not in row]
    if missing:
        raise ValueError(f"a figure without {', '.join(missing)}: {row}")
    date = datetime.now(UTC).isoformat(timespec="seconds")
    line = {
        "machine": machine(),
        "threads": threads(),
        "commit": commit(),
        "date": date,
        **{k: _short(v) for k, v in row.items()},
    }
    append_line(path, line)
    return line


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one JSON line; a torn line before it is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(line, allow_nan=False) + "\n")


def machine() -> str:
    """The machine in words: the GPU, or the processor and its cores that this process may use."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {cores()} cores"


def threads() -> int | None:
    """Torch's threads in this process; None where it computes nothing."""
    torch: Any = sys.modules.get("torch")
    return None if torch is None else torch.get_num_threads()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """Short hash of HEAD, with `+changes` where tracked files outside the results differ; `unknown` without git.

    METAGEN_COMMIT names it for a copy of the tree that has no history.
    """
    if os.environ.get("METAGEN_COMMIT"):
        return os.environ["METAGEN_COMMIT"]
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        # What the measuring itself writes is no change of what is measured.
        written = (":!benchmarks/results", ":!results", ":!README.md", ":!docs/benchmarks.md")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *written)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if changed else head


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
