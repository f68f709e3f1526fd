"""How much of the machine a figure is: the operations that the work takes, over the measured rate of matrix products.

Counted once is what must be computed (`metagen_ray.cost`): a prefix read once is counted once, padding and recomputed
activations not at all. Backward through frozen weights needs the gradient of the inputs alone: it costs as much as
forward, not twice.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from benchmarks.bases import Base
from benchmarks.measure import settle
from metagen_ray.cost.decoder import Decoder, read_decoder
from metagen_ray.cost.work import Reads, tree_reads
from metagen_ray.training.rows import Tree

Product = tuple[int, int, int]  # rows, inner, columns
GPU_PRODUCT: Product = (8192, 8192, 8192)
LONG_ENOUGH_S = 1.0


def reads_of(trees: Iterable[Tree]) -> Reads:
    """What reading these trees once each takes."""
    found = (tree_reads(len(t.prefix), ((b.prompt, len(b.completion)) for b in t.branches)) for t in trees)
    return sum(found, Reads())


def forward_flops(decoder: Decoder, reads: Reads) -> float:
    """Operations of reading alone, without an adapter."""
    attention = reads.pairs * decoder.flops_per_pair
    return reads.tokens * decoder.flops_per_token + attention + reads.logits * decoder.flops_per_logits


def training_flops(decoder: Decoder, reads: Reads, rank: int) -> float:
    """Operations of reading and of the way back, with LoRA of this rank on every linear layer."""
    attention = reads.pairs * 3 * decoder.flops_per_pair  # two products forward, four backward
    layers = reads.tokens * (2 * decoder.flops_per_token + 6 * decoder.adapter_parameters(rank))
    return layers + attention + reads.logits * 2 * decoder.flops_per_logits


def share(flops: float, seconds: Sequence[float], rate: float) -> float:
    """Share of `rate` at which work of so many operations was done; the median of the rounds."""
    return flops / statistics.median(seconds) / rate


def memory_gib(work: Callable[[], object]) -> float | None:
    """Most GPU memory allocated while the work is done once, what lay there before included; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 2**30


def peak_rate(base: Base, reads: Reads) -> float:
    """FLOP/s of this machine's matrix products.

    On a CPU fp32 at the shapes of reading so much in one pack, with torch's threads; on a GPU bf16 at a shape that
    fills it.
    """
    if base.device == "cuda":
        return product_rate([GPU_PRODUCT], torch.bfloat16, "cuda")
    return product_rate(pack_products(decoder_of(base), reads), torch.float32, "cpu")


def decoder_of(base: Base) -> Decoder:
    """The base's dimensions."""
    return read_decoder(base.directory)


def pack_products(decoder: Decoder, reads: Reads) -> list[Product]:
    """The matrix products of reading one pack, attention apart."""
    layer = [*decoder.attention.values(), *decoder.feed_forward.values()]
    products = [(round(reads.tokens), *shape) for shape in layer * decoder.layers]
    return [*products, (round(reads.logits), decoder.hidden, decoder.vocab)]


def product_rate(shapes: Sequence[Product], dtype: torch.dtype, device: str) -> float:
    """FLOP/s of these products done one after another, repeated for a second; the best of three."""
    pairs = [(torch.randn(m, k).to(device, dtype), torch.randn(n, k).to(device, dtype).t()) for m, k, n in shapes]
    flops = sum(2.0 * m * k * n for m, k, n in shapes)
    return max(_rate(pairs, flops) for _ in range(3))


@torch.inference_mode()
def _rate(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], flops: float) -> float:
    for a, b in pairs:
        torch.mm(a, b)
    settle()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < LONG_ENOUGH_S / 3:
        for a, b in pairs:
            torch.mm(a, b)
        settle()
        done += 1
    return done * flops / (time.perf_counter() - began)
