"""A pocket study on three nodes with addresses and disks of their own, submitted from a fourth, and what came of it."""

import csv
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.plan import Plan
from metagen_ray.study import Study, load_study
from tests.cluster.local import LocalCluster

APP_PORT = 8177
# Half a core for a replica and a third for a worker: two of a kind never fit one node of one core.
ON_TWO_WORKERS = (
    "resources.lanes=2",
    "resources.meta_workers=2",
    "resources.cpus_per_worker=0.3",
    "resources.threads_per_worker=1",
    "resources.replicas=2",
    "resources.cpus_per_replica=0.55",
    "resources.memory_gib=2",
    f"resources.port={APP_PORT}",
)


@dataclass(frozen=True)
class Ran:
    """A finished study."""

    study: Study
    output: str
    seconds: float

    @property
    def folder(self) -> Path:
        """Of the run, in its store."""
        return Path(self.study.store) / "studies" / self.study.run_name()

    def stages(self) -> dict[str, dict[str, float]]:
        """Figures by stage."""
        return json.loads((self.folder / "ledger.json").read_text())["stages"]

    def figures(self, prefix: str) -> Counter[str]:
        """Figures whose name begins so, over all stages, by the rest of the name."""
        found: Counter[str] = Counter()
        for figures in self.stages().values():
            found.update({n.removeprefix(prefix): int(v) for n, v in figures.items() if n.startswith(prefix)})
        return found

    def meta_record(self) -> Mapping:
        """What stands beside the meta adapter."""
        plan = Plan(StudyContext(self.study))
        return plan.context.store.record("meta_sft", plan.meta)

    def rmse(self) -> dict[tuple[str, str], float]:
        """The sampled RMSE by predictor and quadrant."""
        with (self.folder / "report" / "quadrants.csv").open() as file:
            rows = [r for r in csv.DictReader(file) if r["metric"] == "rmse" and r["value"]]
        return {(r["predictor"], r["quadrant"]): float(r["value"]) for r in rows}


def submission(cluster: LocalCluster, settings: Sequence[str], store: str = "") -> list[str]:
    """The command that `out` types; the disk that all nodes share is the store where none is named."""
    chosen = [a for s in (*settings, f"store={store or cluster.store}") for a in ("--set", s)]
    python = sys.executable
    return [python, "-m", "metagen_ray.cli", "submit", "pocket", "--address", cluster.head, "--python", python, *chosen]


def submitted(cluster: LocalCluster, settings: Sequence[str], log: Path, limit_s: float = 900) -> Ran:
    """Submit from outside and follow to the end; AssertionError with the last lines where it fails."""
    began = time.monotonic()
    process = cluster.start("out", *submission(cluster, settings), log=log)
    code = process.wait(limit_s)
    assert code == 0, f"exit code {code}: {log.read_text()[-4000:]}"
    study = load_study("pocket", [*settings, f"store={cluster.store}"])
    return Ran(study, log.read_text(), time.monotonic() - began)


def here(settings: Sequence[str], store: Path, limit_s: float = 900) -> Ran:
    """The same study on this machine, as one node."""
    chosen = [a for s in (*settings, f"store={store}") for a in ("--set", s)]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "metagen_ray.cli", "run", "pocket", *chosen],
        capture_output=True,
        text=True,
        timeout=limit_s,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return Ran(load_study("pocket", [*settings, f"store={store}"]), done.stdout, time.monotonic() - began)
