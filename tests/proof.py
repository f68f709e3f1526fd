"""Campaigns of hours, in pieces that resume: `make proof`, or `python -m tests.proof [PIECE ...] [--again]`.

A piece is a function that returns figures, or raises. Each finished piece appends one JSON line (piece, figures,
seconds, commit, date) to results/proof.jsonl; a piece that already stands there for this commit is skipped, so an
interrupted campaign goes on where it was. A tree with uncommitted changes has no commit to stand for: its pieces run
again each time.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.proof_pieces import PIECES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "proof.jsonl"

Figures = Mapping[str, object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pieces that are missing; returns 1 if one failed, and goes on to the next all the same."""
    parser = argparse.ArgumentParser(description="Run the proof campaigns that are missing for this commit.")
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=f"of {', '.join(PIECES)}; all if none is named")
    parser.add_argument("--again", action="store_true", help="run also what stands there for this commit")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.pieces) - set(PIECES))
    if unknown:
        parser.error(f"no piece {unknown[0]!r}; there are {', '.join(PIECES)}")
    chosen = {name: piece for name, piece in PIECES.items() if name in (options.pieces or PIECES)}
    return run(chosen, RESULTS, current_commit(), options.again)


def run(pieces: Mapping[str, Callable[[], Figures]], results: Path, commit: str, again: bool = False) -> int:
    """Run pieces in order, each missing one once, and append a line for every piece that finishes."""
    finished = set() if again else finished_pieces(results, commit)
    failed = []
    for name, piece in pieces.items():
        if name in finished:
            print(f"{name}: stands for {commit}, skipped")
            continue
        print(f"{name}: running", flush=True)
        began = time.monotonic()
        try:
            figures = piece()
        except Exception as error:  # a campaign reports a failed piece and goes on
            failed.append(name)
            print(f"{name}: failed, {error}", file=sys.stderr)
            continue
        append(results, name, figures, time.monotonic() - began, commit)
        print(f"{name}: {json.dumps(figures)}", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def finished_pieces(results: Path, commit: str) -> set[str]:
    """Names of the pieces that stand for a commit; a torn last line counts as none."""
    if not results.exists() or commit.endswith("+changes"):
        return set()
    finished = set()
    for line in results.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["commit"] == commit:
            finished.add(record["piece"])
    return finished


def append(results: Path, name: str, figures: Figures, seconds: float, commit: str) -> None:
    """Add one line; a torn line before it is ended first."""
    record = {
        "piece": name,
        "figures": dict(figures),
        "seconds": round(seconds, 1),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    results.parent.mkdir(parents=True, exist_ok=True)
    torn = results.exists() and results.stat().st_size > 0 and not results.read_bytes().endswith(b"\n")
    with results.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(record, sort_keys=True) + "\n")


def current_commit() -> str:
    """Short hash of HEAD, with `+changes` when tracked files outside results/ differ from it."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return f"{commit}+changes" if changed else commit


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
