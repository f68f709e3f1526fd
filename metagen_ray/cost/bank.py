"""How many adapters train in one pass, and which: the size of a bank, shares of lanes, banks of a share.

Imports nothing of training, so that plans, lanes and simulations use the same rule.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from metagen_ray.cost.decoder import Decoder

CPU_BANK = 16  # most adapters of a bank on CPUs, where memory is no guide; the size that the benchmarks measure
USABLE_SHARE = 0.85  # of a GPU's memory: the rest is the allocator's, NCCL's and the CUDA context's
RECOMPUTE_SHARE = 0.25  # a base above this share of a GPU's memory recomputes activations, as training/base.py does
LIVE_BYTES = 2e9  # of a sharded base, what DeepSpeed holds gathered at a time: 1e9 parameters in bf16
OPTIMIZER_BYTES = 16  # of one adapter parameter: fp32 weight, gradient and two moments


@dataclass(frozen=True, slots=True)
class BankMemory:
    """A GPU's memory and what training takes of it, bytes: the base once, activations and optimizer per adapter."""

    total: float
    base: float
    adapter: float

    def room(self) -> int:
        """Adapters that fit, 0 if the base and one adapter do not."""
        free = USABLE_SHARE * self.total - self.base
        return max(0, int(free // self.adapter))


def bank_memory(
    decoder: Decoder,
    gpu_bytes: float,
    step_tokens: float,
    step_logits: float,
    adapter_parameters: int,
    shards: int = 1,
) -> BankMemory:
    """Memory of a bank on one GPU; `step_tokens` and `step_logits` are those of one adapter's optimizer step.

    A base in several `shards` (ZeRO 3) leaves each GPU its part and what is gathered at a time.
    """
    recomputed = shards > 1 or decoder.weight_bytes > RECOMPUTE_SHARE * gpu_bytes
    activations = step_tokens * decoder.activation_bytes(recomputed) + step_logits * decoder.logits_bytes
    base = decoder.weight_bytes
    if shards > 1:
        base = min(base, base / shards + LIVE_BYTES)
    return BankMemory(gpu_bytes, base, activations + OPTIMIZER_BYTES * adapter_parameters)


def choose_bank(domains: int, lanes: int, memory: BankMemory | None = None) -> int:
    """G = min(what memory allows, ceil(domains / lanes)), at least 1; without `memory`, on CPUs, at most CPU_BANK.

    Where one adapter does not fit whole, G = 1 and its step is read in several packs.
    """
    if domains < 1 or lanes < 1:
        raise ValueError(f"{domains} domains on {lanes} lanes: both are at least 1")
    most = CPU_BANK if memory is None else memory.room()
    return max(1, min(most, math.ceil(domains / lanes)))


def deal(costs: Sequence[float], lanes: int) -> list[list[int]]:
    """Jobs (by number) to lanes, the most expensive first to whoever has least."""
    shares: list[list[int]] = [[] for _ in range(lanes)]
    load = [0.0] * lanes
    for job in sorted(range(len(costs)), key=lambda j: costs[j], reverse=True):
        least = load.index(min(load))
        shares[least].append(job)
        load[least] += costs[job]
    return shares


def cut_banks(share: Sequence[int], size: int) -> list[list[int]]:
    """A lane's jobs in banks of at most `size`, in order, as even as they can be: no bank of one at the end."""
    count = math.ceil(len(share) / size)
    borders = [round(n * len(share) / count) for n in range(count + 1)] if count else []
    return [list(share[a:b]) for a, b in pairwise(borders)]
