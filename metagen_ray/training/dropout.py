"""Dropout as a function of what is dropped: adapter, step, layer, token and feature decide, never the order of work.

So an adapter that trains in a bank, in other packs or on other ranks drops what it would drop alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from metagen_ray.training.rows import Pack

# The constants of splitmix64, as signed numbers: torch multiplies int64 modulo 2^64.
STRIDE = -0x61C8864680B583EB
MIX_1 = -0x40A7B892E31B1A47
MIX_2 = -0x6B2FB644ECCEEE15
BITS = 24  # a probability in units of 2^-24


@dataclass(frozen=True, slots=True)
class Drops:
    """What dropout needs of a pack: a seed by token, and the share that is dropped by token."""

    seed_S: torch.Tensor
    share_S: torch.Tensor

    def scale(self, layer: int, features: int) -> torch.Tensor:
        """[S, features]: 0 where an input of the layer is dropped, else 1 / (1 - share)."""
        feature = torch.arange(features, device=self.seed_S.device)
        drawn = _mix(_mix(self.seed_S + layer)[:, None] + feature * STRIDE) & ((1 << BITS) - 1)
        keep = drawn >= (self.share_S * (1 << BITS)).long()[:, None]
        return keep / (1 - self.share_S[:, None])


def drops(pack: Pack, salts: Sequence[int], shares: Sequence[float]) -> Drops:
    """The dropout of one step; a salt (adapter and step) and a share for every slot."""
    seeds = torch.empty_like(pack.mark_S)
    share = torch.zeros(len(seeds), dtype=torch.float32, device=seeds.device)
    for slot, start, end in pack.segments:
        seeds[start:end] = _mix(pack.mark_S[start:end] * STRIDE + salts[slot])
        share[start:end] = shares[slot]
    return Drops(seeds, share)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """splitmix64's finish. Shifts are masked, since torch's keep the sign."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * MIX_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * MIX_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))
