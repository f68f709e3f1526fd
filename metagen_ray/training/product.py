"""The product of a linear layer with a bank of LoRA pairs, forward and backward in one node.

Tokens [T] lie adapter by adapter; `segments` says which are whose. Three forms of equal numbers. Even: adapters of one
shape with as many tokens each (`rows.evened`) are one batch of small products, 3-6 x faster on a CPU than one by one.
Split: one small product per adapter, whatever their shapes and shares. Wide, on a GPU, which calls few kernels: all
adapters side by side in one product, the others masked out. On a small model half of a step is the cost of calling
operators, hence one node.

Shape suffixes: G adapter, L token of one adapter, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Segments = Sequence[tuple[int, int, int]]  # (slot, first token, end)


@dataclass(frozen=True, slots=True)
class Banked:
    """What a pack tells every layer: whose tokens are where, each slot's alpha / rank, and how to compute."""

    segments: Segments
    scalings: Sequence[float]
    wide: bool = False  # one product for all adapters
    even: bool = False  # one batch of products; pairs are then [G, ...] of the adapters of the segments

    def own_TR(self, ranks: Sequence[int], tokens: int, device: torch.device) -> torch.Tensor:
        """[T, sum of ranks]: whether a column is of the token's own adapter."""
        own = torch.zeros(tokens, sum(ranks), dtype=torch.bool, device=device)
        starts = [sum(ranks[:slot]) for slot in range(len(ranks))]
        for slot, start, end in self.segments:
            own[start:end, starts[slot] : starts[slot] + ranks[slot]] = True
        return own


def banked_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    how: Banked,
    drop: torch.Tensor | None,
) -> torch.Tensor:
    """X W' + bias + s ((x * drop) A') B', A and B those of each token's adapter; x [..., T, inputs]."""
    flat = [tensor for pair in pairs for tensor in pair]
    product = _Even if how.even else _Wide if how.wide else _Split
    return product.apply(x, weight, bias, how, drop, *flat)  # type: ignore[return-value]


class _Even(torch.autograd.Function):
    """One batch of small products; the forms are those that MKL is fastest on."""

    @staticmethod
    def forward(ctx, x, weight, bias, how, drop, a_GRI, b_GOR):
        rows, adapters = x.reshape(-1, x.shape[-1]), len(how.segments)
        seen = rows if drop is None else rows * drop
        seen_GLI, scaling = seen.view(adapters, -1, x.shape[-1]), how.scalings[how.segments[0][0]]
        out = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        low_GLR = torch.bmm(seen_GLI, a_GRI.transpose(1, 2))
        out.view(adapters, -1, out.shape[-1]).baddbmm_(low_GLR, b_GOR.transpose(1, 2), alpha=scaling)
        ctx.save_for_backward(seen_GLI, weight, drop, low_GLR, a_GRI, b_GOR)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, *grads):
        seen_GLI, weight, drop, low_GLR, a_GRI, b_GOR = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_GLO = grad.view(*low_GLR.shape[:2], -1)
        grad_low_GLR = torch.bmm(grad_GLO, b_GOR).mul_(ctx.scaling)
        grad_a = torch.bmm(grad_low_GLR.transpose(1, 2), seen_GLI)
        grad_b = torch.bmm(low_GLR.transpose(1, 2), grad_GLO).mul_(ctx.scaling).transpose(1, 2)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None, grad_a, grad_b
        grad_x = grad @ weight
        if drop is None:
            grad_x.view(seen_GLI.shape).baddbmm_(grad_low_GLR, a_GRI)
        else:
            grad_x.addcmul_(torch.bmm(grad_low_GLR, a_GRI).view(grad_x.shape), drop)
        return grad_x.view(ctx.shape), None, None, None, None, grad_a, grad_b


class _Split(torch.autograd.Function):
    """One small product per adapter."""

    @staticmethod
    def forward(ctx, x, weight, bias, how, drop, *pairs):
        rows = x.reshape(-1, x.shape[-1])
        seen = rows if drop is None else rows * drop
        out = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        lows = []
        for slot, start, end in how.segments:
            low = seen[start:end] @ pairs[2 * slot].t()
            out[start:end].addmm_(low, pairs[2 * slot + 1].t(), alpha=how.scalings[slot])
            lows.append(low)
        ctx.save_for_backward(seen, weight, drop, *lows, *pairs)
        ctx.how, ctx.shape = how, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, *grads):
        how, grad = ctx.how, grads[0].reshape(-1, grads[0].shape[-1])
        seen, weight, drop, *rest = ctx.saved_tensors
        lows, pairs = rest[: len(how.segments)], rest[len(how.segments) :]
        grad_x: torch.Tensor | None = grad @ weight if ctx.needs_input_grad[0] else None
        found: list[torch.Tensor | None] = [None] * len(pairs)
        for low, (slot, start, end) in zip(lows, how.segments, strict=True):
            a, b, part = pairs[2 * slot], pairs[2 * slot + 1], grad[start:end]
            # With a narrow side MKL is 2-4 x slower on the plain forms (part @ b, part.t() @ low) than on these.
            grad_low = (part @ b.t().contiguous().t()).mul_(how.scalings[slot])
            found[2 * slot] = grad_low.t() @ seen[start:end]
            found[2 * slot + 1] = (low.t() @ part).mul_(how.scalings[slot]).t()
            if grad_x is None:
                continue
            if drop is None:
                grad_x[start:end].addmm_(grad_low, a)
            else:
                grad_x[start:end].addcmul_(grad_low @ a, drop[start:end])
        return (None if grad_x is None else grad_x.view(ctx.shape)), None, None, None, None, *found


class _Wide(torch.autograd.Function):
    """All adapters side by side, what is not a token's own masked out."""

    @staticmethod
    def forward(ctx, x, weight, bias, how, drop, *pairs):
        rows = x.reshape(-1, x.shape[-1])
        seen = rows if drop is None else rows * drop
        ranks = [a.shape[0] for a in pairs[::2]]
        own = how.own_TR(ranks, len(rows), rows.device)
        scaled = [b * s for b, s in zip(pairs[1::2], how.scalings, strict=True)]
        wide_a, wide_b = torch.cat(pairs[::2]), torch.cat(scaled, dim=1)
        low = (seen @ wide_a.t()).masked_fill_(~own, 0.0)
        out = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        out.addmm_(low, wide_b.t())
        ctx.save_for_backward(seen, weight, drop, low, own, wide_a, wide_b)
        ctx.how, ctx.shape, ctx.ranks = how, x.shape, ranks
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, *grads):
        seen, weight, drop, low, own, wide_a, wide_b = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_low = (grad @ wide_b).masked_fill_(~own, 0.0)
        grad_a = (grad_low.t() @ seen).split(ctx.ranks)
        grad_b = (grad.t() @ low).split(ctx.ranks, dim=1)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            grad_x = grad_x.addmm_(grad_low, wide_a) if drop is None else grad_x.addcmul_(grad_low @ wide_a, drop)
            grad_x = grad_x.view(ctx.shape)
        scaled = (g * s for g, s in zip(grad_b, ctx.how.scalings, strict=True))
        pairs = [tensor for pair in zip(grad_a, scaled, strict=True) for tensor in pair]
        return grad_x, None, None, None, None, *pairs
