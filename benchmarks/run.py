"""All measurements: `python -m benchmarks.run [ROW ...] [--quick] [--size SIZE]`, or `make bench`.

Every row runs in a process of its own with a time limit, appends its lines to benchmarks/results/, and fails alone; at
the end the tables of README.md and docs/benchmarks.md are written from the newest lines. `--quick` looks whether a row
still runs: tiny work, nothing is kept. Let the machine do nothing else meanwhile.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import RESULTS, ROOT, Options, Row, append_row
from benchmarks.table import write_pages


@dataclass(frozen=True, slots=True)
class Script:
    """Who measures a row. `rows` takes Options where `by_size`, else nothing."""

    module: str
    limit_s: float
    by_size: bool = True


SCRIPTS: Mapping[str, Script] = {
    "1": Script("benchmarks.bank_trl", 2400),
    "2": Script("benchmarks.bank_own", 2400),
    "3": Script("benchmarks.grid", 2400),
    "4": Script("benchmarks.meta_trl", 2400),
    "5": Script("benchmarks.scoring", 1800),
    "6": Script("benchmarks.judge", 1800),
    "7": Script("benchmarks.study", 7200),
    "8": Script("benchmarks.plain_study", 7200),
    "9": Script("benchmarks.makespan", 1800, by_size=False),
    "10": Script("benchmarks.grow", 3600, by_size=False),
    "workers": Script("benchmarks.workers", 1800),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows that are named, all by default; 1 where one failed."""
    parser = argparse.ArgumentParser(description="Measure the rows of docs/benchmarks.md and write its table.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(SCRIPTS)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="look whether the rows run; keeps nothing")
    parser.add_argument("--size", action="append", help="measure this size alone; may be repeated")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON lines")
    parser.add_argument("--here", action="store_true", help="in this process: how each row is started")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.rows) - set(SCRIPTS))
    if unknown:
        parser.error(f"no row {unknown[0]}; there are {', '.join(SCRIPTS)}")
    names = options.rows or list(SCRIPTS)
    if options.here:
        for name in names:
            measure(SCRIPTS[name], options.quick, options.size, options.results)
        return 0
    flags = [*(["--quick"] if options.quick else []), *(f"--size={s}" for s in options.size or ())]
    failed = [name for name in names if not _apart(name, [*flags, f"--results={options.results}"])]
    if not options.quick and options.results == RESULTS:
        write_pages()
    if failed:
        print(f"failed: {', '.join(f'row {name}' for name in failed)}", file=sys.stderr)
    return 1 if failed else 0


def measure(script: Script, quick: bool, sizes: Sequence[str] | None, results: Path) -> None:
    """Measure in this process; lines are kept unless `quick`."""
    rows: Callable[..., Iterable[Row]] = importlib.import_module(script.module).rows
    for row in rows(_options(quick, sizes)) if script.by_size else rows():
        path = results / f"{script.module.rpartition('.')[2]}.jsonl"
        print(json.dumps(row if quick else append_row(path, row)), flush=True)


def _options(quick: bool, sizes: Sequence[str] | None) -> Options:
    if not sizes:
        from benchmarks.bases import sizes as all_sizes

        sizes = all_sizes()
    return Options(tuple(sizes), quick)


def _apart(name: str, flags: list[str]) -> bool:
    """One row in a process of its own; says how it went."""
    script, began = SCRIPTS[name], time.monotonic()
    print(f"row {name}: {script.module}", flush=True)
    command = [sys.executable, "-m", "benchmarks.run", name, "--here", *flags]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(script.limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # engines and servers of the row with it
        process.wait()
        print(f"row {name}: stopped after its limit of {script.limit_s:.0f} s", file=sys.stderr)
        return False
    print(f"row {name}: {'done' if code == 0 else f'exit code {code}'}, {time.monotonic() - began:.0f} s", flush=True)
    return code == 0


if __name__ == "__main__":
    sys.exit(main())
