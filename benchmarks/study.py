"""Row 7: whole studies through `metagen run` in a fresh store, against the same studies before this tree was fast.

`python -m benchmarks.study --before` measures the walls of that older commit on this machine and keeps them; without
such a line the recorded ones stand, which were taken beside other work on the same kind of machine. Also draws seconds
a cell against the number of domains.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.curves import Curve, write_curve
from benchmarks.measure import RESULTS, ROOT, Options, Row, append_line, compared, machine

BEFORE = "8a2195830bc8"
LIMIT_S = 3600


@dataclass(frozen=True, slots=True)
class Measured:
    """A study, and the seconds it took before."""

    preset: str
    settings: tuple[str, ...]
    before_s: float
    cells: int
    aim: float | None = None
    limit_s: float | None = None  # what it should take at most
    older: tuple[str, ...] = ()  # what today's preset has of its own, given to the older commit


FULL = ("seed=3", "truth_seed=3")
TWO_REPLICAS = ("resources.replicas=2", "resources.cpus_per_replica=0.5", "resources.cpus_per_worker=0.75")
STUDIES = (
    # 20 of the fine-tunes are of a second seed.
    Measured("pocket_full", FULL, 1297, cells=120 * 100, aim=2.5, limit_s=720, older=TWO_REPLICAS),
    Measured("pocket", (), 291.5, cells=32 * 32, limit_s=300),
)
SMALLEST = Measured("pocket", ("domains=4",), 291.5, cells=16)
CURVE_DOMAINS = (4, 12, 36)  # 100 is the full study


@dataclass(frozen=True, slots=True)
class Wall:
    """Seconds of a run from start to exit code 0, and by stage as its ledger has them."""

    seconds: float
    stages: dict[str, float]


def rows(options: Options) -> Iterator[Row]:
    """Every study once, kept as soon as it ends; draws the curve. `quick` runs the smallest study that there is."""
    walls = {}
    for study in (SMALLEST,) if options.quick else STUDIES:
        walls[study.preset] = _fresh(study.preset, study.settings)
        yield _row(study, walls[study.preset])
    if not options.quick:
        points = [_point(d, d * d, _fresh("pocket_full", (*FULL, *_domains(d)))) for d in CURVE_DOMAINS]
        points.append(_point(100, STUDIES[0].cells, walls["pocket_full"]))
        columns = ("study", "domains", "ms_a_cell", "low", "high")
        write_curve(Curve("study", "Wall of a study by its cells", columns, points))


def _domains(count: int) -> tuple[str, ...]:
    """The first domains alone, each fine-tuned once."""
    return f"domains={count}", "second_seed_domains=0"


def _point(domains: int, cells: int, wall: Wall) -> tuple[str, float, float, float, float]:
    ms = 1000 * wall.seconds / cells
    return "pocket_full", domains, ms, ms, ms


def run_study(preset: str, settings: Sequence[str], store: Path, tree: Path = ROOT) -> Wall:
    """`metagen run` of a source tree. RuntimeError with its last lines where it fails."""
    chosen = [part for setting in (*settings, f"store={store}") for part in ("--set", setting)]
    command = [sys.executable, "-m", "metagen_ray.cli", "run", preset, *chosen]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    seconds = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    (ledger,) = (store / "studies").glob("*/ledger.json")
    kept = json.loads(ledger.read_text())
    stages = kept.get("stages", kept)  # the older commit's ledger is its stages
    return Wall(seconds, {name: figures["seconds"] for name, figures in stages.items()})


def _fresh(preset: str, settings: Sequence[str], tree: Path = ROOT) -> Wall:
    with tempfile.TemporaryDirectory(prefix="metagen-bench-", ignore_cleanup_errors=True) as folder:
        return run_study(preset, settings, Path(folder) / "store", tree)


def _row(study: Measured, wall: Wall) -> Row:
    before_s, note = _before(study)
    row = compared(
        7,
        study.preset,
        "a whole study, from nothing",
        f"the same study at commit {BEFORE}",
        "s",
        [wall.seconds],
        [before_s],
        parity_of="not compared: answers are sampled; both studies' results stand in results/proof.jsonl",
        aim=study.aim,
        limit_s=study.limit_s,
        note=note,
        stages=wall.stages,
    )
    faster = before_s / wall.seconds
    return row | {"ratio": faster, "low": faster, "high": faster}


def _before(study: Measured) -> tuple[float, str]:
    """The newest wall of the older commit on this machine, else the recorded one."""
    path = RESULTS / "study_before.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in reversed(list(map(json.loads, lines))):
        if (line["study"], line["machine"]) == (study.preset, machine()):
            return line["seconds"], f"the older commit was measured on {line['date'][:10]}"
    return study.before_s, "the older commit's wall is the recorded one, taken beside other work"


def measure_before(presets: Sequence[str]) -> None:
    """Run these studies at the older commit, all if none is named, and keep their walls."""
    with tempfile.TemporaryDirectory(prefix="metagen-before-") as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(tree)], check=True)
        subprocess.run(["git", "-C", str(tree), "checkout", "-q", BEFORE], check=True)
        for study in (s for s in STUDIES if not presets or s.preset in presets):
            wall = _fresh(study.preset, (*study.settings, *study.older), tree)
            date = datetime.now(UTC).isoformat(timespec="seconds")
            line: dict[str, Any] = {"study": study.preset, "seconds": round(wall.seconds, 1), "stages": wall.stages}
            append_line(RESULTS / "study_before.jsonl", line | {"machine": machine(), "commit": BEFORE, "date": date})


if __name__ == "__main__":
    if sys.argv[1:2] != ["--before"]:
        sys.exit("python -m benchmarks.study --before [PRESET ...], or python -m benchmarks.run 7")
    measure_before(sys.argv[2:])
