"""Stands of a long training in a store, so that another process goes on. Knows no model and no Ray."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metagen_ray.store import content_key, open_store


@dataclass(frozen=True, slots=True)
class StoreShelf:
    """Stands of one meta-SFT, one artifact per epoch under keys made of `key`; plain values that travel to workers."""

    store_root: str
    key: str
    epochs: int
    stage: str = "checkpoint"

    def save(self, epochs: int, files: Mapping[str, bytes]) -> None:
        """Keep the stand after `epochs` epochs."""
        open_store(self.store_root).put_files(
            self.stage, self._name(epochs), files, {"meta": self.key, "epochs": epochs}
        )

    def load(self) -> dict[str, bytes] | None:
        """Files of the latest stand."""
        store = open_store(self.store_root)
        kept = store.keys(self.stage)
        for epochs in range(self.epochs, 0, -1):
            if self._name(epochs) in kept:
                with tempfile.TemporaryDirectory(prefix="metagen-stand-") as folder:
                    store.fetch_files(self.stage, self._name(epochs), Path(folder))
                    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        return None

    def _name(self, epochs: int) -> str:
        return content_key({"meta": self.key, "epochs": epochs})
