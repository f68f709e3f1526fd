"""The worker of vLLM's CPU engine, with two of its inner loops done again. Knows no requests.

LoRA: vLLM copies an adapter's weights once for every token of the batch, which is most of a small model's time and
gigabytes; and it takes the index -1 of a token without adapter for the last slot, so that the base's answers change
once as many adapters are loaded as there are slots. Here it is two dense products per batch.

Sampling: vLLM draws an exponential for every word of the vocabulary, 40 % of a small model's time on CPU. Here it is
one uniform per answer, looked up in the cumulative distribution, block by block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.worker.cpu_worker import CPUWorker

from metagen_ray.serving.cpu_kernels import use_kernels
from metagen_ray.serving.orphan import end_with_parent

BLOCK = 64  # words of the vocabulary that are summed up before any is looked at


class ByAdapter(PunicaWrapperCPU):
    """Knows which rows of a batch belong to which adapter slot, and multiplies all of a layer's at once."""

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Take up a new batch."""
        super().update_metadata(*args, **kwargs)
        self._tokens = Rows.of(self.token_lora_indices)
        self._samples = Rows.of(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """Add every slice's scale * x A' B' to y, in place."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        start = 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            add_products(self._tokens, y[:, start : start + width], x, a, b, scale)
            start += width

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **_: Any,
    ) -> None:
        """Add the output layer's scale * x A' B' to the logits y, in place."""
        width = min(y.shape[-1], lora_b_stacked.shape[-2])
        y, x = y.view(-1, y.shape[-1])[:, :width], x.view(-1, x.shape[-1])
        add_products(self._samples, y, x, lora_a_stacked, lora_b_stacked[..., :width, :], scale)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **_: Any
    ) -> None:
        """Add x B' to the embeddings y, in place; x is the embedding's A, already looked up."""
        assert add_inputs
        add_products(self._tokens, y, x.to(y.dtype), None, lora_b_stacked, 1.0)


@dataclass(frozen=True, slots=True)
class Rows:
    """The adapter slots in use in a batch, K of them; which is a row's own, where that is not the same for all."""

    slots: list[int]
    own_TK1: torch.Tensor | None

    @classmethod
    def of(cls, slots_T: torch.Tensor) -> "Rows":
        """Of the slot of each row of the batch, -1 where it has no adapter."""
        present = slots_T.unique().tolist()
        slots = [slot for slot in present if slot >= 0]
        if len(present) == 1:
            return cls(slots, None)
        return cls(slots, (slots_T[:, None] == torch.tensor(slots, dtype=slots_T.dtype))[..., None])


def add_products(
    rows: Rows, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor | None, b: torch.Tensor, scale: float
) -> None:
    """Each row's y += scale * x A' B', all adapters side by side and those that are not a row's own masked out.

    Gathering and scattering the rows of each adapter took a third of a small model's time. vLLM stacks A and B with or
    without a dimension of one beside the slots.
    """
    if not rows.slots:
        return
    low = x.repeat(1, len(rows.slots)) if a is None else x @ _side_by_side(a, rows.slots, dim=0).t()
    if rows.own_TK1 is not None:
        low.view(len(x), len(rows.slots), low.shape[1] // len(rows.slots)).mul_(rows.own_TK1)
    y.addmm_(low, _side_by_side(b, rows.slots, dim=1).t(), alpha=scale)


def _side_by_side(stacked: torch.Tensor, slots: Sequence[int], dim: int) -> torch.Tensor:
    found = [stacked[slot].flatten(0, -2) for slot in slots]
    return found[0] if len(found) == 1 else torch.cat(found, dim)


def sample(logits_NV: torch.Tensor) -> torch.Tensor:
    """One token per row from softmax(logits), independent over rows. N: answer, V: word of the vocabulary.

    A block of words by one uniform, then a word of the block by what is left of it.
    """
    share_NV = F.pad(logits_NV.softmax(dim=-1, dtype=torch.float32), (0, -logits_NV.shape[1] % BLOCK))
    blocks_NKB = share_NV.view(len(share_NV), share_NV.shape[1] // BLOCK, BLOCK)
    upto_NK = blocks_NKB.sum(dim=-1).double().cumsum(dim=-1)
    drawn_N1 = torch.rand(len(share_NV), 1, dtype=torch.float64)
    block_N1, left_N1 = _pick(upto_NK, drawn_N1)
    own_NB = blocks_NKB.gather(1, block_N1[..., None].expand(-1, 1, BLOCK)).squeeze(1)
    word_N1, _ = _pick(own_NB.double().cumsum(dim=-1), left_N1)
    return (block_N1 * BLOCK + word_N1).squeeze(1)


def _pick(upto_NK: torch.Tensor, drawn_N1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of K a uniform of 0..1 falls on, never one of no size; and where inside it, a uniform again."""
    whole_N1 = upto_NK[:, -1:]
    at_N1 = torch.minimum(drawn_N1 * whole_N1, whole_N1.nextafter(torch.zeros_like(whole_N1)))
    chosen_N1 = torch.searchsorted(upto_NK, at_N1, right=True).clamp_(max=upto_NK.shape[1] - 1)  # not numbers: any
    end_N1 = upto_NK.gather(1, chosen_N1)
    start_N1 = torch.where(chosen_N1 > 0, upto_NK.gather(1, (chosen_N1 - 1).clamp_(min=0)), 0.0)
    return chosen_N1, (at_N1 - start_N1) / (end_N1 - start_N1)


class Worker(CPUWorker):
    """The CPU worker, with these loops."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        end_with_parent()
        name = f"{ByAdapter.__module__}.{ByAdapter.__qualname__}"
        type(current_platform).get_punica_wrapper = classmethod(lambda cls: name)  # type: ignore[method-assign]
        topk_topp_sampler.compiled_random_sample = sample
        use_kernels(kwargs["vllm_config"] if "vllm_config" in kwargs else args[0])
        super().__init__(*args, **kwargs)
