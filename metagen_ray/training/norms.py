"""Norms of a frozen decoder in one node of the graph. Knows no adapters.

Hugging Face's norm is six operators, whose gradient keeps and reads as many whole tensors: a seventh of a small model's
step on a CPU. With a weight that does not train the gradient is four passes.
"""

import torch
from torch import nn

PROBE = 4  # rows on which a norm must say what its own class says
CLOSE = 1e-5


class FrozenNorm(nn.Module):
    """X over its root mean square, times a weight that does not train; x [..., features]."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The norm over the last axis."""
        return _Norm.apply(x, self.weight, self.epsilon)  # type: ignore[return-value]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, epsilon):
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx, *grads):
        normed, scale, weight = ctx.saved_tensors
        grad = grads[0] * weight
        along = torch.linalg.vecdot(grad, normed).div_(-normed.shape[-1]).unsqueeze(-1)
        return grad.addcmul_(normed, along).mul_(scale), None, None


def freeze_norms(decoder: nn.Module) -> int:
    """Put a FrozenNorm in place of every RMS norm of a frozen fp32 decoder that says the same; returns how many."""
    found = 0
    for holder in list(decoder.modules()):
        for name, norm in list(holder.named_children()):
            if (frozen := _frozen(norm)) is not None:
                setattr(holder, name, frozen)
                found += 1
    return found


def _frozen(norm: nn.Module) -> FrozenNorm | None:
    """The same norm in one node; None for what is no plain RMS norm: it trains, adds 1 to its weight or reads more."""
    weight, epsilon = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
    if not (
        type(norm).__name__.endswith("RMSNorm") and isinstance(weight, nn.Parameter) and isinstance(epsilon, float)
    ):
        return None
    if weight.dim() != 1 or len([*norm.parameters(), *norm.children()]) != 1:
        return None
    if weight.requires_grad or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    probe = torch.linspace(-2.0, 3.0, PROBE * len(weight)).view(PROBE, -1)
    frozen = FrozenNorm(weight, epsilon)
    with torch.no_grad():
        try:
            same = torch.allclose(norm(probe), frozen(probe), rtol=CLOSE, atol=CLOSE)
        except TypeError:  # it is called with more than one tensor
            return None
    return frozen if same else None
