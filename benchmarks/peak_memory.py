"""Peak proportional memory (PSS) of a command with everything it starts: `python -m benchmarks.peak_memory -- COMMAND`.

PSS divides shared pages among their sharers, so the sum over processes is what the machine really gives. Processes are
found by a mark in their environment, which Ray's daemons inherit. Prints one JSON line; ends with the command's code.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

MARK = "METAGEN_MEASURED"
EVERY_S = 1.0


def main(command: list[str]) -> int:
    """Run the command and sample until it ends."""
    mark = uuid.uuid4().hex
    began, peak, peak_at = time.monotonic(), 0, 0.0
    process = subprocess.Popen(command, env={**os.environ, MARK: mark})
    while process.poll() is None:
        total = sum(pss_bytes(pid) for pid in marked(mark))
        if total > peak:
            peak, peak_at = total, time.monotonic() - began
        time.sleep(EVERY_S)
    seconds = time.monotonic() - began
    figures = {"peak_pss_gib": round(peak / 2**30, 2), "at_s": round(peak_at), "seconds": round(seconds)}
    print(json.dumps({**figures, "command": " ".join(command), "exit": process.returncode}))
    return process.returncode


def marked(mark: str) -> list[int]:
    """Ids of processes that carry the mark."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:  # it ended, or it is not ours
                continue
            if needle in environment:
                found.append(int(folder.name))
    return found


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    arguments = sys.argv[2:] if sys.argv[1:2] == ["--"] else sys.argv[1:]
    sys.exit(main(arguments))
