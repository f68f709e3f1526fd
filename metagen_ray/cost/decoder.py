"""The dimensions of a decoder and what follows from them: parameters, FLOPs and bytes of a token. Loads no weights.

FLOPs are those of matrix products, two per multiply-add. Norms, activations, rotary embeddings and softmax are left
out (under 1 % from a width of 1,000 on). Layers that attend to a window are counted as full attention, an upper bound.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metagen_ray.errors import InputError

BF16 = 2  # bytes
# Decoders whose feed-forward layer has two matrices instead of three; config.json does not say it.
UNGATED = frozenset({"gpt_neox", "phi", "opt", "falcon", "starcoder2", "gpt_bigcode"})


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder's dimensions. `experts` > 1 is a mixture of which a token passes `experts_per_token`."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = True
    gated: bool = True
    experts: int = 1
    experts_per_token: int = 1

    @property
    def attention(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's attention products."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
        }

    @property
    def feed_forward(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's feed-forward products, of one expert in a mixture."""
        gate = {"gate_proj": (self.hidden, self.intermediate)} if self.gated else {}
        return {
            **gate,
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def token_parameters(self) -> int:
        """Weights that one token is multiplied with in all layers; without embeddings and head."""
        router = self.hidden * self.experts if self.experts > 1 else 0
        feed_forward = self.experts_per_token * _size(self.feed_forward)
        return self.layers * (_size(self.attention) + feed_forward + router)

    @property
    def parameters(self) -> int:
        """All weights of matrices: layers, embeddings and head."""
        idle = (self.experts - self.experts_per_token) * _size(self.feed_forward) * self.layers
        return self.token_parameters + idle + self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def weight_bytes(self) -> int:
        """The weights in bf16."""
        return BF16 * self.parameters

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token in all layers, bf16."""
        return BF16 * 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def flops_per_token(self) -> float:
        """Forward FLOPs of one token in all layers, attention over other tokens and logits apart."""
        return 2.0 * self.token_parameters

    @property
    def flops_per_pair(self) -> float:
        """Forward FLOPs of one token attending to one other (or itself) in all layers."""
        return 4.0 * self.layers * self.heads * self.head_dim

    @property
    def flops_per_logits(self) -> float:
        """FLOPs of the logits of one position."""
        return 2.0 * self.hidden * self.vocab

    def adapter_parameters(self, rank: int, targets: Sequence[str] | str = "all-linear") -> int:
        """Parameters of a LoRA adapter. A mixture's experts are no linear layers and get none."""
        linear = {**self.attention, **(self.feed_forward if self.experts == 1 else {})}
        chosen = list(linear) if isinstance(targets, str) else list(targets)
        unknown = sorted(set(chosen) - set(linear))
        if unknown:
            raise InputError(
                f"recipe targets {', '.join(unknown)}: the cost of these layers is not known; known are "
                f"{', '.join(linear)} and all-linear"
            )
        return self.layers * rank * sum(sum(linear[name]) for name in chosen)

    def activation_bytes(self, recomputed: bool = False) -> float:
        """Bytes of one token that a bf16 training step keeps for the backward pass; with `recomputed`, each layer's
        input and the layers' content one at a time.

        The factors are measured on a Qwen3 with saved_tensors_hooks (tests/cost/test_decoder.py).
        """
        projected = (self.heads + self.kv_heads) * self.head_dim
        layer = 12 * self.hidden + 9 * projected + 8 * self.intermediate * self.experts_per_token
        return self.layers * BF16 * self.hidden + layer if recomputed else self.layers * layer

    @property
    def logits_bytes(self) -> float:
        """Bytes that the logits of one trained position take at most: bf16 and fp32, and their gradients."""
        return 12.0 * self.vocab


def _size(linear: dict[str, tuple[int, int]]) -> int:
    return sum(inputs * outputs for inputs, outputs in linear.values())


def read_decoder(directory: Path) -> Decoder:
    """The dimensions in a model directory's config.json. InputError names what is missing."""
    return decoder_of(json.loads((directory / "config.json").read_text(encoding="utf-8")), str(directory))


def decoder_of(config: dict[str, Any], where: str = "config.json") -> Decoder:
    """The dimensions in a Hugging Face configuration, under the names that Llama, Qwen, Mistral, Gemma and Phi use."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    missing = [n for n in (*names, "intermediate_size") if not isinstance(config.get(n), int)]
    if missing:
        raise InputError(
            f"{where}: no {', '.join(missing)}; the cost of such a model is not known, plan without --cost"
        )
    hidden, layers, heads, vocab = (config[n] for n in names)
    experts = config.get("num_experts") or config.get("num_local_experts") or 1
    return Decoder(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        intermediate=(experts > 1 and config.get("moe_intermediate_size")) or config["intermediate_size"],
        vocab=vocab,
        tied=bool(config.get("tie_word_embeddings", str(config.get("model_type")).startswith("gemma"))),
        gated=config.get("model_type") not in UNGATED,
        experts=experts,
        experts_per_token=config.get("num_experts_per_tok", 1) if experts > 1 else 1,
    )
