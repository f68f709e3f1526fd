"""A disk of its own for a folder, small enough to be filled."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAY_MOUNT = os.geteuid() == 0


@contextmanager
def disk(folder: Path, mib: int) -> Iterator[Path]:
    """A disk of so many MiB at `folder`, which is gone afterwards with all that lay there."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, seconds: float) -> None:
    """Let nothing be written there for a while."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**20))
    time.sleep(seconds)
    ballast.unlink()
