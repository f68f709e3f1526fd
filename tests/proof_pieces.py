"""The pieces of the proof campaigns. Owns what is run; knows nothing of results files or of resuming.

A piece takes nothing, returns the figures worth keeping, and raises when what it shows does not hold.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
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


PIECES: dict[str, Callable[[], Mapping[str, object]]] = {
    "setup_and_demo_from_nothing": setup_and_demo_from_nothing,
}
