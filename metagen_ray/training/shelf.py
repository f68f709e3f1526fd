"""Stands of a long training in a store, so that another process goes on. Knows no model and no Ray."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metagen_ray.errors import StoreError
from metagen_ray.progress import say
from metagen_ray.scratch import Scratch
from metagen_ray.store import Store, content_key, join_store

STAGE = "checkpoint"
EVERY_S = 300.0
HURRIED_S = 15.0  # a cloud gives 30 s to 2 min of notice


@dataclass(slots=True)
class StoreShelf:
    """Stands of one meta-SFT under keys made of `key` and the count of steps; plain values that travel to workers.

    `steps` is how many the training has at most. The newest two stands are kept: one may be damaged.
    """

    store_root: str
    key: str
    steps: int
    every_s: float = EVERY_S
    _saved: float | None = None  # on the clock of the process that saves

    def due(self) -> bool:
        """Whether `every_s` have gone by since the last stand, or since it was asked first."""
        if self._saved is None:
            self._saved = time.monotonic()
        return time.monotonic() - self._saved >= self.every_s

    def hurry(self) -> None:
        """Have stands be due every few seconds: a node is about to be taken away."""
        self.every_s = min(self.every_s, HURRIED_S)

    def save(self, steps: int, files: Mapping[str, bytes]) -> None:
        """Keep the stand after `steps` steps, and let go of all but the one before.

        One that cannot be kept is told of and left out: the training is worth more, and others wait for this rank.
        """
        self._saved = time.monotonic()
        try:
            store = join_store(self.store_root)
            earlier = self._kept(store)
            store.put_files(STAGE, self._name(steps), files, {"meta": self.key, "steps": steps})
            for name in earlier[1:]:
                store.discard(STAGE, name)
        except StoreError as error:
            say(f"meta_sft: a checkpoint is not kept: {error}")

    def names(self) -> list[str]:
        """What `read` takes, the latest first."""
        return self._kept(join_store(self.store_root))

    def read(self, name: str) -> dict[str, bytes] | None:
        """Files of a stand; None where they cannot be read whole."""
        with Scratch("stand") as folder:
            try:
                join_store(self.store_root).fetch_files(STAGE, name, Path(folder))
            except StoreError as error:
                say(f"meta_sft: a checkpoint cannot be read and is passed over: {error}")
                return None
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def clear(self) -> None:
        """Let go of all stands; the adapter is committed."""
        store = join_store(self.store_root)
        for name in self._kept(store):
            store.discard(STAGE, name)

    def _kept(self, store: Store) -> list[str]:
        """Keys of the stands that are there, latest first."""
        there = store.keys(STAGE)
        names = (self._name(steps) for steps in range(self.steps, 0, -1)) if there else ()
        return [name for name in names if name in there]

    def _name(self, steps: int) -> str:
        return content_key({"meta": self.key, "steps": steps})
