"""A long training between two steps, as files: what it needs to go on. Knows no store; the caller brings the shelf."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from safetensors.torch import load, save

from metagen_ray.training.core import Engine, Snapshot, TrainLog
from metagen_ray.training.lora import Adapter

TENSORS = "stand.safetensors"
REST = "stand.json"
KEPT = "kept:"


class Shelf(Protocol):
    """Where stands are kept; the latest counts. Every rank reads; rank 0 asks whether one is due, and saves."""

    def due(self) -> bool:
        """Whether the training should be saved now, also in the middle of an epoch."""
        ...

    def hurry(self) -> None:
        """Have stands be due often from now on."""
        ...

    def save(self, steps: int, files: Mapping[str, bytes]) -> None:
        """Keep the stand after `steps` optimizer steps; earlier ones are not needed any more."""
        ...

    def names(self) -> Sequence[str]:
        """What `read` takes, the latest first."""
        ...

    def read(self, name: str) -> Mapping[str, bytes] | None:
        """Files of a stand; None where they cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Stand:
    """A training after some steps, and the adapter of the epoch it would hand out; `kept_epoch` 0 where none ended."""

    snapshot: Snapshot
    log: TrainLog
    inner_losses: list[float]
    kept_epoch: int
    kept: Adapter

    def files(self) -> dict[str, bytes]:
        """The stand as files by name."""
        taken = self.snapshot
        tensors = {"flat": taken.flat, "first": taken.first, "second": taken.second}
        tensors |= {KEPT + name: tensor.contiguous() for name, tensor in self.kept.items()}
        rest = {"log": asdict(self.log), "inner_losses": self.inner_losses, "kept_epoch": self.kept_epoch}
        return {TENSORS: save(tensors), REST: json.dumps(rest | {"updates": taken.updates}).encode()}


def load_stand(shelf: Shelf | None, engine: Engine) -> Stand | None:
    """The latest stand on a shelf that every rank can read, if there is one.

    Rank 0 says which ones there are: workers whose controller died may save one more between two ranks' looks, and
    ranks that go on from different steps wait for each other for ever.
    """
    if not shelf:
        return None
    for name in engine.agreed(shelf.names() if engine.rank == 0 else ()):
        files = shelf.read(name)
        if not engine.any_rank(files is None) and files is not None:
            return _stand_of(files)
    return None


def _stand_of(files: Mapping[str, bytes]) -> Stand:
    rest, tensors = json.loads(files[REST]), load(files[TENSORS])
    kept = {name.removeprefix(KEPT): tensor for name, tensor in tensors.items() if name.startswith(KEPT)}
    snapshot = Snapshot(tensors["flat"], tensors["first"], tensors["second"], rest["updates"])
    return Stand(snapshot, TrainLog(**rest["log"]), rest["inner_losses"], rest["kept_epoch"], kept)
