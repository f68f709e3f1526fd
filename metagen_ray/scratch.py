"""Folders in the temporary directory, which a killed process leaves and the next one on its node removes."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "metagen-scratch-"
_YOUNG_S = 60.0
"""A folder as young as this may be one that its process has not locked yet."""

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary directory, locked while its process lives; making one removes those that nobody holds any more."""

    def __init__(self, purpose: str) -> None:
        sweep()
        super().__init__(prefix=f"{_PREFIX}{purpose}-", ignore_cleanup_errors=True)
        lock = os.open(self.name, _OPEN)
        self._let_go = weakref.finalize(self, os.close, lock)
        with contextlib.suppress(OSError):  # where folders cannot be locked, none is ever swept
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def cleanup(self) -> None:
        """Remove the folder."""
        super().cleanup()
        self._let_go()


def sweep() -> None:
    """Remove this user's folders whose processes have ended without doing so."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _opened(folder) as held:
            status = os.fstat(held)
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > _YOUNG_S:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    held = os.open(folder, _OPEN)
    try:
        yield held
    finally:
        os.close(held)
