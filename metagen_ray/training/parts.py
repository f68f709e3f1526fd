"""Attention by parts: every tree of a pack attends within itself alone. Owns who sees whom inside a layer.

A mask over the whole pack costs the square of its length and is mostly zeros. Here straight rows become a padded batch
under ordinary causal attention, sorted by length; a tree is two calls: its prefix over itself, then its branches over
prefix and branches under a mask of their own. The numbers are those of the mask (tested).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from metagen_ray.training.rows import Pack, Span

NAME = "metagen_parts"  # what transformers knows this attention by
LENGTHS = 16  # straight rows whose lengths round up to the same multiple are one batch


@dataclass(frozen=True, slots=True)
class Fork:
    """A tree with several branches: tokens start:fork:end, and which of start:end each of fork:end sees (additive)."""

    start: int
    fork: int
    end: int
    mask_QK: torch.Tensor


@dataclass(slots=True)
class Parts:
    """How a pack is cut. N places of the padded straight rows; O places of all outputs, straight rows first."""

    take_N: torch.Tensor | None  # token of each place, padding repeats token 0; None where places are tokens in order
    straight_P: torch.Tensor  # tokens of straight rows
    place_P: torch.Tensor  # and their places
    batches: list[tuple[int, int]]  # (rows, length)
    forks: list[Fork]
    out_S: torch.Tensor  # place in O of each token
    in_order: bool  # one straight row, forks alone, or straight rows without padding: O is S
    calls: int = field(default=0)


def cut(pack: Pack) -> Parts:
    """The parts of a pack, on its device."""
    rows = sorted((s for s in pack.spans if s.straight), key=lambda s: s.end - s.start)
    take, straight, place, batches = _pad(rows)
    trees = [s for s in pack.spans if not s.straight]
    out = [0] * len(pack.token_S)
    for token, at in zip(straight, place, strict=True):
        out[token] = at
    at = len(take)
    for span in trees:
        out[span.start : span.end] = range(at, at + span.end - span.start)
        at += span.end - span.start
    take_N, straight_P, place_P, out_S = (
        torch.tensor(column, dtype=torch.long, device=pack.token_S.device) for column in (take, straight, place, out)
    )
    even = take == list(range(len(pack.token_S)))  # no padding, nothing out of order
    forks, in_order = [_fork(pack, s) for s in trees], even or not rows or pack.is_straight
    return Parts(None if even else take_N, straight_P, place_P, batches, forks, out_S, in_order)


def _pad(rows: Sequence[Span]) -> tuple[list[int], list[int], list[int], list[tuple[int, int]]]:
    take: list[int] = []
    straight: list[int] = []
    place: list[int] = []
    by_length: dict[int, list[Span]] = {}
    for span in rows:
        by_length.setdefault(-(-(span.end - span.start) // LENGTHS), []).append(span)
    batches = []
    for spans in by_length.values():
        length = max(s.end - s.start for s in spans)
        batches.append((len(spans), length))
        for span in spans:
            size = span.end - span.start
            place += range(len(take), len(take) + size)
            straight += range(span.start, span.end)
            take += [*range(span.start, span.end), *[0] * (length - size)]
    return take, straight, place, batches


def _fork(pack: Pack, span: Span) -> Fork:
    tree = slice(span.start, span.end)
    group, leaf = pack.group_S[tree], pack.leaf_S[tree]
    fork = span.fork - span.start
    order = torch.arange(span.end - span.start, device=group.device)
    seen = order[fork:, None] >= order[None]
    seen &= (group[None] < 0) | (group[fork:, None] == group[None])
    seen &= (leaf[None] < 0) | (leaf[fork:, None] == leaf[None])
    mask = torch.zeros(seen.shape, device=group.device).masked_fill_(~seen, float("-inf"))
    return Fork(span.start, span.fork, span.end, mask)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    parts: Parts | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; query [1, H, S, D], key and value [1, H or fewer, S, D]; out [1, S, H, D]."""
    if kwargs.get("softcap") is not None:
        raise ValueError("attention by parts has no soft cap")
    if key.shape[1] != query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, scale=scaling)

    if parts is None:
        causal = attention_mask is None
        out = call(query, key, value) if causal else call(query, key, value, attention_mask)
        return out.transpose(1, 2).contiguous(), None
    parts.calls += 1
    if len(parts.batches) == 1 and parts.batches[0][0] == 1 and not parts.forks:
        return call(query, key, value).transpose(1, 2).contiguous(), None
    found = _rows(parts, call, query, key, value) if parts.batches else []
    for fork in parts.forks:
        found += _tree(fork, call, query, key, value)
    out = torch.cat(found) if len(found) > 1 else found[0]
    if not parts.in_order:
        out = _pick_out(out, parts)
    return out[None], None


Call = Callable[..., torch.Tensor]


def _rows(parts: Parts, call: Call, *qkv: torch.Tensor) -> list[torch.Tensor]:
    """Straight rows, [places, H, D] by batch."""
    laid = [_laid(x.squeeze(0).transpose(0, 1), parts) for x in qkv]
    sizes = [rows * length for rows, length in parts.batches]
    found = []
    # Split, not sliced: the gradient of slices is as many whole tensors, mostly zeros, that are added up.
    for (rows, length), *cut in zip(parts.batches, *(x.split(sizes) for x in laid), strict=True):
        q, k, v = (x.reshape(rows, length, *x.shape[1:]).transpose(1, 2) for x in cut)
        found.append(call(q, k, v).transpose(1, 2).reshape(rows * length, *laid[0].shape[1:]))
    return found


def _laid(x: torch.Tensor, parts: Parts) -> torch.Tensor:
    """Straight rows at their places; [S, H, D] to [N, H, D]."""
    if parts.take_N is None:
        return x
    return _Pick.apply(x, parts.take_N, parts.straight_P, parts.place_P)  # type: ignore[return-value]


def _tree(fork: Fork, call: Call, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    """A prefix over itself, then the branches over all; [tokens, H, D] each."""
    stem, rest = slice(fork.start, fork.fork), slice(fork.fork, fork.end)
    whole = slice(fork.start, fork.end)
    found = [call(q[:, :, stem], k[:, :, stem], v[:, :, stem])] if fork.fork > fork.start else []
    found.append(call(q[:, :, rest], k[:, :, whole], v[:, :, whole], fork.mask_QK.to(q.dtype)))
    return [x[0].transpose(0, 1) for x in found]


def _pick_out(out: torch.Tensor, parts: Parts) -> torch.Tensor:
    return _Pick.apply(out, parts.out_S, parts.out_S, None)  # type: ignore[return-value]


class _Pick(torch.autograd.Function):
    """x[take] along the first axis, where each input counts once at most; its gradient is a copy, not a sum.

    Input `source` went to place `place` (all places in order if None); other places are padding, and get none.
    """

    @staticmethod
    def forward(ctx, x, take, source, place):
        ctx.save_for_backward(source, *([] if place is None else [place]))
        ctx.size = x.shape[0]
        return x.index_select(0, take)

    @staticmethod
    def backward(ctx, *grads):
        source, *place = ctx.saved_tensors
        grad = grads[0].index_select(0, place[0]) if place else grads[0]
        found = grad.new_zeros(ctx.size, *grad.shape[1:])
        return found.index_copy_(0, source, grad), None, None, None


def register() -> None:
    """Tell transformers of this attention; it makes no masks of its own. May be called again."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *_, **__: None)
