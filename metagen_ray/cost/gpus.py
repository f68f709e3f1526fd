"""GPU types: what they can do at most and what they cost. Owns the table and its sources."""

import difflib
from dataclasses import dataclass

from metagen_ray.errors import InputError

PRICE_SOURCE = "RunPod's list price, March 2026; list prices differ by a factor of three and change: check yours"


@dataclass(frozen=True, slots=True)
class Gpu:
    """Peak rates of one GPU: dense bf16 without sparsity, memory and its bandwidth, USD an hour."""

    name: str
    tflops: float
    memory_gib: float
    bandwidth_gb_s: float
    usd_per_hour: float
    source: str
    price_source: str = PRICE_SOURCE

    @property
    def flops_per_s(self) -> float:
        """Peak FLOP/s."""
        return self.tflops * 1e12

    @property
    def bytes_per_s(self) -> float:
        """Peak bytes/s of memory traffic."""
        return self.bandwidth_gb_s * 1e9

    @property
    def memory_bytes(self) -> float:
        """Memory in bytes."""
        return self.memory_gib * 2**30


# Datasheets give bf16 with sparsity for Hopper, Ada and Blackwell; dense is half of it.
GPUS = (
    Gpu("L4", 121.0, 24, 300, 0.44, "NVIDIA L4 datasheet: bf16 242 TFLOPS with sparsity"),
    Gpu("L40S", 362.0, 48, 864, 0.79, "NVIDIA L40S datasheet: bf16 362 TFLOPS dense"),
    Gpu("A100-80", 312.0, 80, 2039, 1.39, "NVIDIA A100 80GB SXM datasheet: bf16 312 TFLOPS dense"),
    Gpu("H100-SXM", 989.0, 80, 3350, 2.69, "NVIDIA H100 SXM datasheet: bf16 1,979 TFLOPS with sparsity"),
    Gpu("H200", 989.0, 141, 4800, 3.59, "NVIDIA H200 SXM datasheet: bf16 1,979 TFLOPS with sparsity"),
    Gpu("B200", 2250.0, 180, 8000, 5.98, "NVIDIA DGX B200 datasheet, an eighth: bf16 4.5 PFLOPS with sparsity"),
)


def find_gpu(name: str) -> Gpu:
    """A GPU by its name or an unambiguous beginning of it (H100, a100); InputError names the nearest."""
    found = [gpu for gpu in GPUS if gpu.name.lower() == name.lower()]
    found = found or [gpu for gpu in GPUS if name and gpu.name.lower().startswith(name.lower() + "-")]
    if len(found) == 1:
        return found[0]
    known = {gpu.name.lower(): gpu.name for gpu in GPUS}
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.3)
    hint = f"; did you mean {known[near[0]]!r}?" if near else ""
    raise InputError(f"--gpu {name!r}: no such GPU in the table; known are {', '.join(known.values())}{hint}")
