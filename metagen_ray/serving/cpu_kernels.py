"""Norms and gates of the CPU engine, which vLLM runs operator by operator there.

That is meant for a compiler to fuse; without one (a compiler is not to be asked of a user) it is a sixth of a small
model's time. Norms take vLLM's own C++ kernel. Its kernel of the gate is slower than torch's operators.
"""

import torch
from torch.nn import functional as F
from vllm import ir
from vllm.config import VllmConfig
from vllm.model_executor.layers.activation import SiluAndMul

PROVIDER = "vllm_cpu"


def use_kernels(config: VllmConfig) -> None:
    """Have the engine that is about to start with `config` use them. May be called again."""
    SiluAndMul.forward_cpu = silu_and_mul  # type: ignore[method-assign]
    if PROVIDER not in ir.ops.rms_norm.impls:
        ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_takes_norm)(rms_norm)
        ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_takes_sum, inplace=True)(fused_add_rms_norm)
    chosen = config.kernel_config.ir_op_priority
    chosen.rms_norm, chosen.fused_add_rms_norm = [PROVIDER, "native"], [PROVIDER, "native"]


def silu_and_mul(_: SiluAndMul, x: torch.Tensor) -> torch.Tensor:
    """The first half of x through the gate, times the second half."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    """X over its root mean square, times the weight."""
    x = x.contiguous()
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, epsilon)
    return out


def fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of x + x_residual, and the sum; in place."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def _takes_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype


def _takes_sum(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    contiguous = x.is_contiguous() and x_residual.is_contiguous()
    return contiguous and _takes_norm(x, weight, epsilon, variance_size)
