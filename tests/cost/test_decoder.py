"""Parameters, FLOPs and activation bytes of a decoder against counts on real transformers models."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from metagen_ray.base_model import find_base
from metagen_ray.cost.decoder import Decoder, decoder_of, read_decoder
from metagen_ray.cost.gpus import find_gpu
from metagen_ray.cost.roofline import Machine
from metagen_ray.cost.work import Reads, Work
from metagen_ray.errors import InputError

LAB = {  # the shape of the lab's bases
    "vocab_size": 1728, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "intermediate_size": 384,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 192, "decoder_sparse_step": 1}
TOKENS, RANK = 96, 8


def qwen3(**changes) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(**{**LAB, "tie_word_embeddings": True, "attn_implementation": "eager", **changes})
    return Qwen3ForCausalLM(config)


@pytest.mark.parametrize(
    "model",
    [
        qwen3(),
        qwen3(tie_word_embeddings=False),
        LlamaForCausalLM(LlamaConfig(**{n: v for n, v in LAB.items() if n != "head_dim"})),
        Qwen3MoeForCausalLM(Qwen3MoeConfig(**LAB, **MOE)),
    ],
    ids=["tied", "untied", "llama", "mixture"],
)
def test_decoder_parameters_are_the_models(model):
    decoder = decoder_of(model.config.to_dict())
    assert decoder.parameters == pytest.approx(model.num_parameters(), rel=0.01)
    linear = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    assert decoder.adapter_parameters(RANK) == sum(RANK * (m.in_features + m.out_features) for m in linear)


def test_decoder_of_the_shipped_base_has_its_parameters():
    base = find_base("lab:informative").directory
    size = sum(p.stat().st_size for p in base.glob("*.safetensors")) / 4  # fp32
    assert read_decoder(base).parameters == pytest.approx(size, rel=0.01)


def test_decoder_adapter_of_some_targets():
    decoder = decoder_of(LAB)
    assert decoder.adapter_parameters(RANK, ("q_proj", "v_proj")) == 4 * RANK * ((128 + 128) + (128 + 64))
    with pytest.raises(InputError, match="c_attn"):
        decoder.adapter_parameters(RANK, ("c_attn",))


@pytest.mark.parametrize("changes", [{}, {"hidden_size": 64, "intermediate_size": 512}, {"num_key_value_heads": 4}])
def test_forward_flops_are_those_that_torch_counts(changes):
    model = qwen3(**changes).eval()
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(torch.arange(TOKENS)[None])
    # Torch counts whole squares of attention, also what a causal mask hides.
    work = Work(read=Reads(TOKENS, TOKENS**2, TOKENS))
    assert flops(model, work) == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_training_flops_are_those_that_torch_counts():
    model = get_peft_model(qwen3(), LoraConfig(r=RANK, target_modules="all-linear"))
    model.enable_input_require_grads()
    with FlopCounterMode(display=False) as counted:
        model(torch.arange(TOKENS)[None]).logits.sum().backward()
    work = Work(trained=Reads(TOKENS, TOKENS**2, TOKENS))
    adapter = decoder_of(LAB).adapter_parameters(RANK)
    assert flops(model, work, adapter) == pytest.approx(counted.get_total_flops(), rel=0.01)


def flops(model, work: Work, adapter: int = 0) -> float:
    machine = Machine(find_gpu("H100"), decoder_of(model.config.to_dict()))
    return sum(phase.flops for phase in machine.phases(work, adapter))


@pytest.mark.parametrize(
    "changes", [{}, {"hidden_size": 512}, {"intermediate_size": 1536}, {"num_attention_heads": 16}]
)
def test_activation_bytes_are_what_torch_keeps(changes):
    sizes = [kept_bytes(layers, **changes) for layers in (1, 2)]
    one_layer = decoder_of({**LAB, **changes, "num_hidden_layers": 1}).activation_bytes()
    assert one_layer == pytest.approx((sizes[1] - sizes[0]) / TOKENS, rel=0.1)


def kept_bytes(layers: int, **changes) -> int:
    """Bytes that the backward pass of one sequence holds in bf16, weights apart."""
    config = Qwen3Config(**{**LAB, **changes, "num_hidden_layers": layers, "attn_implementation": "sdpa"})
    model = Qwen3ForCausalLM(config).to(torch.bfloat16).requires_grad_(False)
    for module in model.modules():  # their inputs are kept, as LoRA keeps them
        if isinstance(module, torch.nn.Linear):
            module.requires_grad_(True)
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.arange(TOKENS)[None], logits_to_keep=1, use_cache=False).logits.sum()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_activation_bytes_recomputed_keep_one_layer_and_the_inputs_of_all():
    deep, flat = (Decoder(128, layers, 4, 2, 32, 384, 1728) for layers in (8, 1))
    assert deep.activation_bytes(True) == 8 * 2 * 128 + flat.activation_bytes()
    assert deep.activation_bytes(True) < deep.activation_bytes()


def test_decoder_of_another_configuration_is_refused_by_name():
    with pytest.raises(InputError, match="hidden_size, num_hidden_layers"):
        decoder_of({"n_embd": 768, "vocab_size": 50257})
