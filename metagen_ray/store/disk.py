"""Objects as files below one folder, on a local disk or NFS. Knows nothing of shards.

A file is written and synced below tmp/, then linked (or renamed) to its name: link fails where a name is taken, so it
is the create-if-absent. `obstore`'s LocalStore links too, but neither syncs nor looks at what close() says, so that a
power cut or a full NFS server leaves an empty file under its name.
"""

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from metagen_ray.errors import StoreError

_STAGING = "tmp"
_LEFTOVER_AGE_S = 24 * 3600
_ADVICE = {
    errno.ENOSPC: "the disk is full; free space there or choose another store",
    errno.EDQUOT: "the quota is used up; free space there or choose another store",
    errno.EACCES: "permission denied; choose a store that you may write to",
    errno.EROFS: "the file system is read-only; choose a store that you may write to",
    errno.EEXIST: "a file stands where a folder is needed; choose another store",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another store",
}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK}


class DiskObjects:
    """Files below `folder`, which is made when something is first written."""

    def __init__(self, folder: Path):
        self.root = str(folder)
        self._folder = folder

    def create(self, path: str, data: bytes) -> bool:  # noqa: D102 (the protocol says it)
        target = self._folder / path
        with self._explained(path):
            if target.exists():
                return False
            with self._staged(data) as staged:
                _make_folder(target.parent)
                try:
                    os.link(staged, target)
                except FileExistsError:
                    return False
                except OSError as error:
                    raise self._link_error(error) from None
            _sync(target.parent)
        return True

    def replace(self, path: str, data: bytes) -> None:  # noqa: D102
        target = self._folder / path
        with self._explained(path), self._staged(data) as staged:
            _make_folder(target.parent)
            os.replace(staged, target)
            _sync(target.parent)

    def read(self, path: str) -> bytes | None:  # noqa: D102
        dated = self.read_dated(path)
        return None if dated is None else dated[0]

    def read_tail(self, path: str, limit: int) -> bytes | None:  # noqa: D102
        with self._explained(path), contextlib.suppress(FileNotFoundError), self._open(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read()
        return None

    def read_dated(self, path: str) -> tuple[bytes, datetime] | None:  # noqa: D102
        with self._explained(path), contextlib.suppress(FileNotFoundError), self._open(path) as file:
            return file.read(), datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
        return None

    def exists(self, path: str) -> bool:  # noqa: D102
        with self._explained(path):
            return (self._folder / path).is_file()

    def list(self, folder: str) -> Iterator[str]:  # noqa: D102
        with self._explained(folder):
            try:
                entries = list(os.scandir(self._folder / folder))
            except FileNotFoundError:
                return
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if entry.is_dir():
                yield from self.list(path)
            else:
                yield path

    def delete(self, path: str) -> None:  # noqa: D102
        with self._explained(path):
            (self._folder / path).unlink(missing_ok=True)

    def where(self, path: str) -> str:  # noqa: D102
        return str(self._folder / path)

    def sweep(self) -> None:
        """Remove what writers that were killed left below tmp/ more than a day ago."""
        with self._explained(_STAGING):
            for path in list(self.list(_STAGING)):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - (self._folder / path).stat().st_mtime > _LEFTOVER_AGE_S:
                        self.delete(path)

    def _open(self, path: str):
        return open(self._folder / path, "rb")

    @contextlib.contextmanager
    def _staged(self, data: bytes) -> Iterator[Path]:
        staged = self._folder / _STAGING / uuid.uuid4().hex
        _make_folder(staged.parent)
        try:
            with open(staged, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield staged
        finally:
            staged.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
            raise StoreError(f"store {self.root}: {path}: {advice}") from error

    def _link_error(self, error: OSError) -> OSError | StoreError:
        if error.errno not in _NO_LINKS:
            return error
        return StoreError(
            f"store {self.root}: this file system makes no hard links ({error.strerror}), without which nothing can"
            " be committed; use another disk, NFS, or s3:// or gs://"
        )


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
