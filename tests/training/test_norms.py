"""Frozen norms against Hugging Face's own; which norms are left as they are; the heap that a trainer keeps."""

import platform

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Olmo2Config, Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from metagen_ray.training.base import freeze
from metagen_ray.training.heap import keep_heap
from metagen_ray.training.norms import FrozenNorm, freeze_norms

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def decoder(config: type, frozen: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SMALL))
    return freeze(model) if frozen else model


@pytest.mark.parametrize("shape", [(1, 7, 32), (5, 32), (1, 3, 2, 32)], ids=str)
def test_frozen_norm_and_its_gradient_equal_those_of_transformers(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    theirs = Qwen3RMSNorm(32, eps=1e-3).requires_grad_(False)
    theirs.weight.copy_(torch.rand(32) + 0.5)
    ours = FrozenNorm(theirs.weight, 1e-3)
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
    found = [(y, *torch.autograd.grad(y, x, grad)) for y in (ours(x), theirs(x))]
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
    assert torch.autograd.gradcheck(ours.double(), (x.detach().double().requires_grad_(),))


@pytest.mark.parametrize(("config", "norms"), [(Qwen3Config, 9), (LlamaConfig, 5), (Olmo2Config, 9)])
def test_freeze_norms_takes_every_rms_norm_of_a_decoder(config: type, norms: int) -> None:
    model = decoder(config)
    ids = torch.arange(20)[None]
    before, names = model(ids).logits, set(model.state_dict())
    assert freeze_norms(model) == norms
    assert torch.allclose(model(ids).logits, before, atol=1e-5) and set(model.state_dict()) == names
    assert freeze_norms(model) == 0


def test_freeze_norms_leaves_what_is_another_norm_or_trains() -> None:
    assert freeze_norms(decoder(Gemma3TextConfig)) == 0  # adds 1 to its weight
    assert freeze_norms(decoder(Qwen3Config, frozen=False)) == 0
    assert freeze_norms(decoder(Qwen3Config).bfloat16()) == 0

    class HalfRMSNorm(Qwen3RMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return 0.5 * super().forward(hidden_states)

    class GatedRMSNorm(Qwen3RMSNorm):
        def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
            return gate * super().forward(hidden_states)

    odd = nn.ModuleDict({"halved": HalfRMSNorm(32), "gated": GatedRMSNorm(32)}).requires_grad_(False)
    assert freeze_norms(odd) == 0
    assert freeze_norms(nn.ModuleDict({"plain": Qwen3RMSNorm(32)}).requires_grad_(False)) == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no mallopt")
def test_keep_heap_is_taken_by_glibc() -> None:
    assert keep_heap()
