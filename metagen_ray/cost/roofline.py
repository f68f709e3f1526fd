"""Work on a GPU: FLOPs and bytes by phase, seconds at the limit and at a stated utilisation. Knows no study.

A phase takes max(FLOPs / peak, bytes / bandwidth). The limit lets phases overlap perfectly, the stated figure lets
them follow each other, each at its share of the peak. Recomputed activations count as lost utilisation, not as work.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metagen_ray.cost.bank import USABLE_SHARE
from metagen_ray.cost.decoder import BF16, Decoder
from metagen_ray.cost.gpus import Gpu
from metagen_ray.cost.work import Reads, Work
from metagen_ray.errors import InputError

PACK_TOKENS = 4096  # of one pass in training, and of one prefill step of the app (ServingSpec.tokens_in_batch)
SEQUENCES = 256  # answers that a replica writes at a time (ServingSpec.prompts_in_batch)
ADAM_BYTES = (
    28  # of one adapter parameter in an update: weight, gradient, two moments read, all but the gradient written
)


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Shares of the peak that are reached: FLOPs in training, FLOPs in reading, memory bandwidth in writing."""

    training: float = 0.4
    prefill: float = 0.3
    bandwidth: float = 0.6

    def __post_init__(self) -> None:
        for name, share in (("training", self.training), ("prefill", self.prefill), ("bandwidth", self.bandwidth)):
            if not 0 < share <= 1:
                raise InputError(f"utilisation of {name} {share:g}: give a share of the peak, above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Phase:
    """FLOPs and bytes of one kind: training, prefill or decode."""

    kind: str
    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Machine:
    """One GPU with a base on it, and how well both are used."""

    gpu: Gpu
    decoder: Decoder
    utilisation: Utilisation = Utilisation()

    def check(self) -> None:
        """InputError where the base does not fit."""
        usable = USABLE_SHARE * self.gpu.memory_bytes
        if self.decoder.weight_bytes > usable:
            raise InputError(
                f"--gpu {self.gpu.name}: the base needs {self.decoder.weight_bytes / 2**30:.0f} GiB in bf16, the GPU "
                f"has {usable / 2**30:.0f} GiB to use; choose a larger GPU"
            )

    def phases(self, work: Work, adapter: int = 0) -> list[Phase]:
        """What the work asks of the GPU, by one adapter of so many parameters."""
        return [p for p in (self._training(work, adapter), *self._serving(work, adapter)) if p.flops]

    def limit_s(self, phases: Iterable[Phase]) -> float:
        """Seconds below which no GPU of this type can do it."""
        phases = list(phases)
        flops, moved = sum(p.flops for p in phases), sum(p.bytes for p in phases)
        return max(flops / self.gpu.flops_per_s, moved / self.gpu.bytes_per_s)

    def seconds(self, phases: Iterable[Phase]) -> float:
        """Seconds at the stated utilisation."""
        share = {"training": self.utilisation.training}
        return sum(
            max(
                p.flops / self.gpu.flops_per_s / share.get(p.kind, self.utilisation.prefill),
                p.bytes / self.gpu.bytes_per_s / self.utilisation.bandwidth,
            )
            for p in phases
        )

    def bank_phases(self, works: Sequence[Work], adapter: int) -> list[Phase]:
        """Adapters trained in one pass: the base is read once for all of them."""
        whole = sum(works, Work())
        passes = Work(whole.trained, updates=max(w.updates for w in works))
        spared = self._weight_bytes(whole) - self._weight_bytes(passes)
        return [Phase(p.kind, p.flops, p.bytes - spared) for p in self.phases(whole, adapter)]

    def _training(self, work: Work, adapter: int) -> Phase:
        """Forward and backward to the activations, each 2 N a token; the adapter's own, 2 forward and 4 backward."""
        d, reads = self.decoder, work.trained
        flops = reads.tokens * (2 * d.flops_per_token + 6 * adapter)
        flops += reads.pairs * 3 * d.flops_per_pair + reads.logits * 2 * d.flops_per_logits
        kept = 2 * reads.tokens * d.activation_bytes() + reads.logits * d.logits_bytes
        return Phase("training", flops, self._weight_bytes(work) + kept + work.updates * ADAM_BYTES * adapter)

    def _weight_bytes(self, work: Work) -> float:
        passes = max(work.updates, work.trained.tokens / PACK_TOKENS)
        return 2 * passes * self.decoder.weight_bytes if work.trained.tokens else 0.0

    def _serving(self, work: Work, adapter: int) -> tuple[Phase, Phase]:
        read, written, d = work.read, work.written, self.decoder
        weights = d.weight_bytes + BF16 * adapter
        steps = written.tokens / self.sequences(written.pairs / written.tokens) if written.tokens else 0.0
        prefill = Phase("prefill", self._forward(read, adapter), read.tokens * (weights / PACK_TOKENS + d.kv_bytes))
        decode = Phase("decode", self._forward(written, adapter), steps * weights + written.pairs * d.kv_bytes)
        return prefill, decode

    def _forward(self, reads: Reads, adapter: int) -> float:
        d = self.decoder
        flops = reads.tokens * (d.flops_per_token + 2 * adapter)
        return flops + reads.pairs * d.flops_per_pair + reads.logits * d.flops_per_logits

    def sequences(self, context: float) -> float:
        """Answers written at a time: as many as the app takes and as have room for their keys and values."""
        free = USABLE_SHARE * self.gpu.memory_bytes - self.decoder.weight_bytes
        return max(1.0, min(SEQUENCES, free / (self.decoder.kv_bytes * max(context, 1.0))))
