"""What the store asks of a place that keeps bytes under names. Two places exist: disk.py and cloud.py."""

from collections.abc import Iterator
from datetime import datetime
from typing import Protocol


class Objects(Protocol):
    """Named bytes below one root. Paths are relative, of plain parts separated by '/'.

    Every method raises StoreError, one line, when the place fails. Writes are whole or not at all, for every reader
    and through any crash, and are durable once the call returns.
    """

    root: str
    """What `open_store` takes to come back here, from any working directory; free of secrets."""

    def create(self, path: str, data: bytes) -> bool:
        """Put `data` unless something stands there; whether it was put. The one commit of the store."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Put `data` over whatever stands there."""
        ...

    def read(self, path: str) -> bytes | None:
        """All bytes, or None if nothing stands there."""
        ...

    def read_tail(self, path: str, limit: int) -> bytes | None:
        """The last `limit` bytes (all, if there are fewer), or None."""
        ...

    def read_dated(self, path: str) -> tuple[bytes, datetime] | None:
        """All bytes and when they were written, by the place's own clock; or None."""
        ...

    def exists(self, path: str) -> bool:
        """Whether something stands there."""
        ...

    def list(self, folder: str) -> Iterator[str]:
        """Paths of everything below `folder`, in no order; one paginated listing."""
        ...

    def delete(self, path: str) -> None:
        """Remove it, if it is there."""
        ...

    def where(self, path: str) -> str:
        """The full path or URL, for people."""
        ...
