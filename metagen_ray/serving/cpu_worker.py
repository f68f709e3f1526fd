"""The worker of vLLM's CPU engine, with two of its inner loops done again. Knows no requests.

LoRA: vLLM copies an adapter's weights once for every token of the batch, which is most of a small model's time and
gigabytes; and it takes the index -1 of a token without adapter for the last slot, so that the base's answers change
once as many adapters are loaded as there are slots. Here it is one dense product per adapter and batch.

Sampling: vLLM draws an exponential for every word of the vocabulary, 40 % of a small model's time on CPU. Here it is
one uniform per answer, looked up in the cumulative distribution.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.worker.cpu_worker import CPUWorker

from metagen_ray.serving.orphan import end_with_parent

Segments = list[tuple[int, torch.Tensor | None]]


class ByAdapter(PunicaWrapperCPU):
    """Knows which rows of a batch belong to which adapter slot, and multiplies slot by slot."""

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Take up a new batch."""
        super().update_metadata(*args, **kwargs)
        self._tokens = segments(self.token_lora_indices)
        self._samples = segments(self.sampler_indices)

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


def segments(slots_T: torch.Tensor) -> Segments:
    """Adapter slots in use and the rows of each, None for all; T: row of the batch, -1 where it has no adapter."""
    present = slots_T.unique().tolist()
    if len(present) == 1:
        return [(present[0], None)] if present[0] >= 0 else []
    return [(slot, (slots_T == slot).nonzero().squeeze(1)) for slot in present if slot >= 0]


def add_products(
    where: Segments, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor | None, b: torch.Tensor, scale: float
) -> None:
    """Per slot y += scale * x A' B' on its rows; vLLM stacks with or without a dimension of one beside the slots."""
    for slot, rows in where:
        low = x if rows is None else x[rows]
        if a is not None:
            low = low @ a[slot].flatten(0, -2).t()
        out = b[slot].flatten(0, -2).t()
        if rows is None:
            y.addmm_(low, out, alpha=scale)
        else:
            y.index_add_(0, rows, low @ out, alpha=scale)


def sample(logits_NV: torch.Tensor) -> torch.Tensor:
    """One token per row from softmax(logits), independent over rows. N: answer, V: word of the vocabulary."""
    share_NV = logits_NV.softmax(dim=-1, dtype=torch.float32).cumsum(dim=-1, dtype=torch.float64)
    drawn_N1 = torch.rand(len(share_NV), 1, dtype=torch.float64) * share_NV[:, -1:]
    return torch.searchsorted(share_NV, drawn_N1, right=True).squeeze(1).clamp_(max=share_NV.shape[1] - 1)


class Worker(CPUWorker):
    """The CPU worker, with these loops."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        end_with_parent()
        name = f"{ByAdapter.__module__}.{ByAdapter.__qualname__}"
        type(current_platform).get_punica_wrapper = classmethod(lambda cls: name)  # type: ignore[method-assign]
        topk_topp_sampler.compiled_random_sample = sample
        super().__init__(*args, **kwargs)
