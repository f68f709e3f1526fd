"""How much of the machine a figure is: the operations that the work takes, over the measured rate of matrix products.

The work counts once what must be computed: a prefix read once is counted once, padding and recomputed activations not
at all. Backward through frozen weights needs the gradient of the inputs alone: it costs as much as forward, not twice.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn

from benchmarks.measure import settle
from metagen_ray.training.rows import Tree

Product = tuple[int, int, int]  # rows, inner, columns
GPU_PRODUCT: Product = (8192, 8192, 8192)
LONG_ENOUGH_S = 1.0


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder's matrices: (inputs, outputs) of every linear layer but the head, the head, attention's width."""

    linear: tuple[tuple[int, int], ...]
    head: tuple[int, int]
    layers: int
    attention_width: int

    @classmethod
    def of(cls, model: Any) -> "Decoder":
        """What a Hugging Face decoder is made of; not one that carries adapters."""
        head = model.get_output_embeddings()
        layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        config = model.config
        return cls(
            tuple((m.in_features, m.out_features) for m in layers),
            (head.in_features, head.out_features),
            config.num_hidden_layers,
            config.num_attention_heads * config.head_dim,
        )

    def forward_flops(self, tokens: int, predicted: int, pairs: int) -> float:
        """Reading `tokens`, predicting at `predicted` of them; `pairs`: (reader, read) of attention."""
        weights = sum(i * o for i, o in self.linear)
        attention = 4 * self.layers * self.attention_width * pairs
        return 2.0 * weights * tokens + 2.0 * self.head[0] * self.head[1] * predicted + attention

    def training_flops(self, tokens: int, predicted: int, pairs: int, rank: int) -> float:
        """The same, forward and backward through frozen weights, with LoRA on every linear layer."""
        lora = sum(rank * (i + o) for i, o in self.linear)
        # Attention's backward has four products where forward has two.
        attention = 4 * self.layers * self.attention_width * pairs
        return 2 * self.forward_flops(tokens, predicted, pairs) + attention + 6.0 * lora * tokens

    def step_products(self, tokens: int, predicted: int) -> list[Product]:
        """The matrix products of reading a pack of `tokens`."""
        return [*((tokens, i, o) for i, o in self.linear), (predicted, *self.head)]


def read_of(trees: Iterable[Tree]) -> tuple[int, int, int]:
    """Tokens read, tokens predicted, and pairs of attention, of trees read once each."""
    counts = [(t.read_tokens(), t.completion_tokens(), _pairs(t)) for t in trees]
    tokens, predicted, pairs = (sum(column) for column in zip(*counts, strict=True))
    return tokens, predicted, pairs


def _pairs(tree: Tree) -> int:
    start = len(tree.prefix)
    pairs = start * (start + 1) // 2
    for prompt, group in groupby(sorted(tree.branches, key=lambda b: b.prompt), key=lambda b: b.prompt):
        pairs += _continued(start, len(prompt))
        pairs += sum(_continued(start + len(prompt), len(b.completion) - 1) for b in group)
    return pairs


def _continued(before: int, own: int) -> int:
    return own * before + own * (own + 1) // 2


def peak_rate(model: Any, tokens: int, predicted: int) -> float:
    """FLOP/s of this machine's matrix products.

    On a CPU fp32 at the shapes of a pack of this size, with torch's threads; on a GPU bf16 at a shape that fills it.
    """
    if next(model.parameters()).device.type == "cuda":
        return product_rate([GPU_PRODUCT], torch.bfloat16, "cuda")
    return product_rate(Decoder.of(model).step_products(tokens, predicted), torch.float32, "cpu")


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
