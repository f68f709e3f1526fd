"""Row 7: whole studies through `metagen run` in a fresh store, each followed by the same study at an older commit.

That commit is the last before this tree was fast; a shallow clone lacks it. `--size PRESET` measures one study alone.
Where one of the two fails, the next try within two hours takes the other's wall. Also draws seconds a cell against the
number of domains.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.curves import Curve, write_curve
from benchmarks.measure import ROOT, Options, Row, commit, compared

BEFORE = "8a2195830bc8"
LIMIT_S = 3600
KEPT = ROOT / "build" / "row7"  # walls whose counterpart is not measured yet
KEPT_S = 7200  # later the machine may have another pace


@dataclass(frozen=True, slots=True)
class Measured:
    """A study, and what is asked of it."""

    preset: str
    settings: tuple[str, ...]
    cells: int
    aim: float | None = None
    limit_s: float | None = None  # what it should take at most
    older: tuple[str, ...] = ()  # what today's preset has of its own, given to the older commit


FULL = ("seed=3", "truth_seed=3")
TWO_REPLICAS = ("resources.replicas=2", "resources.cpus_per_replica=0.5", "resources.cpus_per_worker=0.75")
STUDIES = (
    # 20 of the fine-tunes are of a second seed.
    Measured("pocket_full", FULL, cells=120 * 100, aim=2.5, limit_s=720, older=TWO_REPLICAS),
    Measured("pocket", (), cells=32 * 32, limit_s=300),
)
SMALLEST = Measured("pocket", ("domains=4",), cells=16)
CURVE_DOMAINS = (4, 12, 36)  # 100 is the full study


@dataclass(frozen=True, slots=True)
class Wall:
    """Seconds of a run from start to exit code 0, and by stage as its ledger has them."""

    seconds: float
    stages: dict[str, float]


def rows(options: Options) -> Iterator[Row]:
    """Each study once and once at the older commit; draws the curve. `quick` runs the smallest study that there is."""
    named = tuple(s for s in STUDIES if s.preset in options.sizes)
    chosen = (SMALLEST,) if options.quick else named or STUDIES  # other rows' sizes are none of a study's
    walls = {}
    with tempfile.TemporaryDirectory(prefix="metagen-before-") as folder:
        older = _older_tree(Path(folder) / "tree")
        for study in chosen:
            kept = [KEPT / f"{study.preset}-{study.cells}-{of}.json" for of in (commit(), BEFORE)]
            wall = walls[study.preset] = _kept(kept[0], partial(_fresh, study.preset, study.settings))
            yield _row(study, wall, _kept(kept[1], partial(_before, study, older)))
            for path in kept:
                path.unlink()
    if not options.quick and "pocket_full" in walls:
        points = [_point(d, d * d, _fresh("pocket_full", (*FULL, *_domains(d)))) for d in CURVE_DOMAINS]
        points.append(_point(100, STUDIES[0].cells, walls["pocket_full"]))
        columns = ("study", "domains", "ms_a_cell", "low", "high")
        write_curve(Curve("study", "Wall of a study by its cells", columns, points))


def _kept(path: Path, run: Callable[[], Wall]) -> Wall:
    """The wall that an earlier try has left, else that of a run, which is left in turn."""
    of_this_tree = "+changes" not in path.name and path.exists()
    if of_this_tree and time.time() - path.stat().st_mtime < KEPT_S:
        return Wall(**json.loads(path.read_text(encoding="utf-8")))
    wall = run()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(wall)), encoding="utf-8")
    return wall


def _before(study: Measured, tree: Path) -> Wall:
    """The older commit's, in a second try where the first fails: two of its replicas that import at once may."""
    run = partial(_fresh, study.preset, (*study.settings, *study.older), tree)
    try:
        return run()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return run()


def _older_tree(tree: Path) -> Path:
    """The older commit's files. RuntimeError where this clone's history does not reach so far."""
    found = subprocess.run(
        ["git", "-C", str(ROOT), "cat-file", "-e", f"{BEFORE}^{{commit}}"], capture_output=True, check=False
    )
    if found.returncode:
        raise RuntimeError(f"row 7 needs commit {BEFORE}, which this clone lacks: git fetch --unshallow")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tree)], check=True)
    subprocess.run(["git", "-C", str(tree), "checkout", "-q", BEFORE], check=True)
    return tree


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


def _row(study: Measured, wall: Wall, before: Wall) -> Row:
    row = compared(
        7,
        study.preset,
        "a whole study, from nothing",
        f"the same study at commit {BEFORE}",
        "s",
        [wall.seconds],
        [before.seconds],
        parity_of="not compared: answers are sampled; both studies' results stand in results/proof.jsonl",
        aim=study.aim,
        limit_s=study.limit_s,
        stages=wall.stages,
        stages_before=before.stages,
    )
    faster = before.seconds / wall.seconds
    return row | {"ratio": faster, "low": faster, "high": faster}
