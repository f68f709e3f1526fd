"""One training in a process of its own: `python -m benchmarks.alone (bank | trl) JOBS.json FOLDER`.

The file holds the base, the recipe and the jobs (rows as token ids, and a seed); adapters are
written into FOLDER, one safetensors file a job. What such a process costs beside the training is what is measured.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.apart import STARTED_WITH
from benchmarks.bases import Base
from benchmarks.measure import ROOT
from metagen_ray.study import Recipe
from metagen_ray.training.rows import Tree, plain_row

Job = tuple[list[Tree], int]


def write_jobs(path: Path, base: Base, recipe: Recipe, jobs: Sequence[Job]) -> Path:
    """The file that a process is given."""
    rows = [([(t.branches[0].prompt, t.branches[0].completion) for t in trees], seed) for trees, seed in jobs]
    content = {
        "size": base.size,
        "base": str(base.directory),
        "recipe": recipe.model_dump(mode="json"),
        "jobs": rows,
    }
    path.write_text(json.dumps(content))
    return path


def run_alone(how: str, jobs: Path, folder: Path) -> None:
    """Run the process to its end. RuntimeError with its last lines where it fails."""
    command = [sys.executable, "-m", "benchmarks.alone", how, str(jobs), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=STARTED_WITH, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"benchmarks.alone {how} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def main(how: str, jobs_file: Path, folder: Path) -> None:
    """Train what the file asks for."""
    from safetensors.torch import save_file

    content = json.loads(jobs_file.read_text())
    base, recipe = Base(content["size"], Path(content["base"])), Recipe(**content["recipe"])
    jobs = [([plain_row(p, c) for p, c in rows], seed) for rows, seed in content["jobs"]]
    folder.mkdir(parents=True, exist_ok=True)
    for number, adapter in enumerate(_bank(base, recipe, jobs) if how == "bank" else _trl(base, recipe, jobs)):
        save_file(dict(adapter), folder / f"{number}.safetensors")


def _bank(base: Base, recipe: Recipe, jobs: Sequence[Job]) -> list:
    from benchmarks.ours import Ours

    ours = Ours(base, recipe, len(jobs))
    ours.train(jobs)
    return ours.adapters


def _trl(base: Base, recipe: Recipe, jobs: Sequence[Job]) -> list:
    """Stock PEFT's own start: where an adapter starts takes no longer in one way than in another."""
    from benchmarks.peers import Trl, Way, laid

    peer, way, found = Trl(base, recipe), Way(recipe.batch_rows), []
    for trees, seed in jobs:
        peer.train(peer.prepare(laid(trees, recipe, seed), way), peer.adapter(), way)
        found.append(peer.adapter())
    return found


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
