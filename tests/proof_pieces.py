"""The pieces of the proof campaigns. Owns what is run; knows nothing of results files or of resuming.

A piece takes nothing, returns the figures worth keeping, and raises when what it shows does not hold.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from metagen_ray.study import load_study
from tests.cluster import pieces as cluster
from tests.cluster.kills import FAULTS
from tests.scale import STUDIES, shards_at_scale
from tests.soak import soak

ROOT = Path(__file__).parent.parent
METAGEN = str(Path(sys.executable).parent / "metagen")
CLAIM_STORE = ROOT / "runs" / "claim"
CLAIMED_SEEDS = (3, 4, 5, 6, 7)  # recipes and weights were tuned on seeds 0-2 and frozen
# The fine-tunes of the claim have a seed of their own: no answer that a recipe was chosen on comes back in it.
CLAIM = ("truth_seed=3", f"store={CLAIM_STORE}")
IN_STORE = ("--store", str(CLAIM_STORE))
QUADRANTS = ("train-eval", "eval-train", "eval-eval")
METRICS = ("rmse", "rmse_expectation", "pearson_column", "pearson_column_expectation")
STUDY_LIMIT_S = 3 * 3600
SETUP_LIMIT_S = 1800
DEMO_LIMIT_S = 7200


def command(*arguments: str, cwd: Path = ROOT, limit_s: float) -> str:
    """Output of a command that must succeed; its last lines stand in the error when it does not."""
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise RuntimeError(f"{' '.join(arguments)} exited with {done.returncode}:\n{tail}")
    return done.stdout


def setup_and_demo_from_nothing() -> Mapping[str, object]:
    """Seconds of `make setup`, of a second `make setup` and of `make demo` on a fresh clone."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        command("git", "clone", "-q", str(ROOT), str(clone), limit_s=SETUP_LIMIT_S)
        seconds = {
            "setup": _timed(["make", "setup"], clone, SETUP_LIMIT_S),
            "setup_again": _timed(["make", "setup"], clone, SETUP_LIMIT_S),
            "demo": _timed(["make", "demo"], clone, DEMO_LIMIT_S),
        }
    return {"seconds": seconds, "cpus": len(os.sched_getaffinity(0))}


def _timed(arguments: Sequence[str], cwd: Path, limit_s: float) -> float:
    began = time.monotonic()
    command(*arguments, cwd=cwd, limit_s=limit_s)
    return round(time.monotonic() - began, 1)


def claimed(preset: str, *overrides: str) -> Mapping[str, object]:
    """A study under the claim's settings; what earlier runs computed is not computed again."""
    began = time.monotonic()
    settings = [part for override in (*CLAIM, *overrides) for part in ("--set", override)]
    output = command(METAGEN, "run", preset, *settings, limit_s=STUDY_LIMIT_S)
    report = Path(next(line.partition(": ")[2] for line in output.splitlines() if line.startswith("report: "))).parent
    return {
        "run": report.parent.name,
        "seconds": round(time.monotonic() - began),
        "judged": _measured(report / "quadrants.csv"),
        "exact": _measured(report / "exact" / "quadrants.csv"),
        "judge_pearson": {r["predictor"]: _rounded(r["pearson"]) for r in _rows(report / "exact" / "judge.csv")},
    }


def pocket_full_together() -> Mapping[str, object]:
    """All claimed seeds pooled; needs their runs."""
    runs = [_run_name(seed) for seed in CLAIMED_SEEDS]
    lines = command(METAGEN, "combine", *runs, *IN_STORE, limit_s=STUDY_LIMIT_S).splitlines()
    return {"table": [line for line in lines if not line.startswith("combined: ")]}  # a path of this machine


def pocket_full_carry() -> Mapping[str, object]:
    """How far a character carries in the first claimed run."""
    return {"table": command(METAGEN, "lab", "carry", _run_name(CLAIMED_SEEDS[0]), *IN_STORE, limit_s=600).splitlines()}


def _run_name(seed: int) -> str:
    return load_study("pocket_full", [f"seed={seed}", *CLAIM]).run_name()


def _measured(file: Path) -> dict[str, dict[str, list[float | None]]]:
    """METRICS of each predictor by evaluation quadrant, in METRICS' order; None where a value does not exist."""
    found = {(r["quadrant"], r["predictor"], r["metric"]): _rounded(r["value"]) for r in _rows(file)}
    predictors = list(dict.fromkeys(predictor for _, predictor, _ in found))
    return {q: {p: [found.get((q, p, m)) for m in METRICS] for p in predictors} for q in QUADRANTS}


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as text:
        return list(csv.DictReader(text))


def _rounded(value: str) -> float | None:
    return round(float(value), 3) if value else None


MOMENTS = range(5)

PIECES: dict[str, Callable[[], Mapping[str, object]]] = {
    "setup_and_demo_from_nothing": setup_and_demo_from_nothing,
    **{f"pocket_full_seed_{seed}": partial(claimed, "pocket_full", f"seed={seed}") for seed in CLAIMED_SEEDS},
    "pocket_full_together": pocket_full_together,
    "pocket_full_carry": pocket_full_carry,
    "pocket_full_blind": partial(claimed, "pocket_full", f"seed={CLAIMED_SEEDS[0]}", "model=lab:blind"),
    "three_nodes": cluster.three_nodes,
    "autoscaled": cluster.autoscaled,
    **{f"shards_{pool}": partial(shards_at_scale, pool) for pool in STUDIES},
    **{
        f"kill_{kind.replace(' ', '_')}_{n}": partial(cluster.killed, kind, n)
        for kind, fault in FAULTS.items()
        for n in (range(1) if fault.calls_fail else MOMENTS)
    },
    "soak": partial(soak, 20 * 60, 100_000),
}
