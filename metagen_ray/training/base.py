"""The frozen base model: loading it, reading a pack with it, which models may share a prefix. Knows no optimizer."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from metagen_ray.errors import InputError
from metagen_ray.training.dropout import drops
from metagen_ray.training.heap import keep_heap
from metagen_ray.training.lora import Bank, LoraShape, Slot
from metagen_ray.training.norms import freeze_norms
from metagen_ray.training.parts import NAME, cut, register
from metagen_ray.training.product import Banked
from metagen_ray.training.rows import Pack, Tree, evened, pack, plain_row, split_by_size

CPU_PACK_TOKENS = 4096
GPU_PACK_TOKENS = 8192
EVEN_FILL = 0.25  # a pack grows by so much at most where that makes its adapters' shares equal
RECOMPUTE_SHARE = 0.25  # of a GPU's memory; a base above it leaves little room for activations


class AdaptedModel(nn.Module):
    """A frozen decoder and a bank of trainable adapters, `flats`; called on a pack, -log p of each completion token."""

    def __init__(self, base: nn.Module, shapes: Sequence[LoraShape], device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.bank = Bank(base, shapes)
        if torch.device(device).type == "cpu":
            freeze_norms(base)
            keep_heap()
        self.base = base
        self.flats = nn.ParameterList(torch.zeros(slot.size) for slot in self.slots)
        self.not_full = layers_without_full_attention(base.config)
        self.place(device)
        self.by_parts = not self.not_full and self._takes_parts()

    def place(self, device: torch.device | str) -> None:
        """Move there what has not been put elsewhere, and read packs as pays there."""
        self.to(device)
        self.pack_tokens = CPU_PACK_TOKENS if self.device.type == "cpu" else GPU_PACK_TOKENS
        self.wide = self.device.type != "cpu" and len(self.slots) > 1
        self.alike = self.device.type == "cpu" and len({slot.shape for slot in self.slots}) == 1 < len(self.slots)

    @property
    def slots(self) -> list[Slot]:
        """The adapters' places."""
        return self.bank.slots

    @property
    def device(self) -> torch.device:
        """Where the adapters live."""
        return self.flats[0].device

    def forward(self, pack: Pack, salts: Sequence[int] = ()) -> torch.Tensor:
        """-log p of the pack's completion tokens, C of them; logits are computed at their sources alone.

        `salts` are the slots' seeds of dropout in this step; without them nothing is dropped. The backward pass comes
        before the next forward: layers that recompute read what this pack was lent.
        """
        pack = evened(pack, EVEN_FILL) if self.alike else pack.to(self.device)
        self.lend(pack, salts)
        if self.by_parts:
            reading = {"attention_mask": None, "parts": cut(pack)}
        else:
            reading = {"attention_mask": None if pack.is_straight else pack.visible_SS()[None, None]}
        logits_CV = self.base(
            input_ids=pack.token_S[None],
            position_ids=pack.position_S[None],
            logits_to_keep=pack.source_C,
            use_cache=False,
            **reading,
        ).logits.squeeze(0)
        return F.cross_entropy(logits_CV.float(), pack.label_C, reduction="none")

    def groups(self, trees: list[Tree]) -> list[list[Tree]]:
        """Trees by pack: as many as fit where all layers attend fully, else row by row.

        InputError where branches share a prefix and a layer cannot: the mask would be ignored and gradients wrong.
        """
        if not self.not_full:
            return split_by_size(trees, self.pack_tokens)
        if any(len(tree.branches) > 1 for tree in trees):
            raise InputError(
                f"this model cannot train with shared prefixes: {describe_layers(self.not_full)}; "
                "use a model whose layers all have full attention, or one branch per tree"
            )
        return [[tree] for tree in trees]

    def lend(self, pack: Pack, salts: Sequence[int] = ()) -> None:
        """Give the layers what they need of the adapters to read this pack; `forward` does."""
        shares = [slot.shape.dropout for slot in self.slots]
        dropping = self.training and any(shares) and salts
        scalings = [slot.shape.alpha / slot.shape.rank for slot in self.slots]
        self.bank.lend(
            list(self.flats),
            self.base.dtype,  # type: ignore[arg-type]
            Banked(pack.segments, scalings, self.wide, self.alike and pack.even),
            drops(pack, salts, shares) if dropping else None,
        )

    def _takes_parts(self) -> bool:
        """Whether every layer of this model hands a pack's parts to its attention; if not, masks say the same."""
        probe = pack([plain_row([0, 0], [0]), plain_row([0], [0])]).to(self.device)
        parts = cut(probe)
        register()
        before = self.base.config._attn_implementation  # type: ignore[union-attr]
        try:
            self.lend(probe, ())
            self.base.set_attn_implementation(NAME)  # type: ignore[operator]
            with torch.no_grad():
                self.base(input_ids=probe.token_S[None], position_ids=probe.position_S[None], parts=parts)
        except (TypeError, ValueError, KeyError, NotImplementedError):
            parts.calls = 0
        if parts.calls == self.base.config.get_text_config().num_hidden_layers:  # type: ignore[union-attr]
            return True
        self.base.set_attn_implementation(before)  # type: ignore[operator]
        return False


def load_base(directory: str | Path, device: torch.device | str = "cpu", sharded: bool = False) -> nn.Module:
    """The decoder in `directory`, frozen: fp32 on a CPU, bf16 on a GPU, where a large one recomputes activations.

    One that is to be `sharded` over devices stays in this machine's memory. InputError if there is no model.
    """
    from transformers import AutoModelForCausalLM, logging

    if not (Path(directory) / "config.json").is_file():
        raise InputError(f"{directory}: no model there (config.json is missing); give a Hugging Face model directory")
    logging.disable_progress_bar()
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(
        os.fspath(directory),
        dtype=dtype,
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=False,
    )
    if sharded:
        return freeze(model, torch.device(device).type == "cuda")
    return freeze(model, _fills_gpu(model, torch.device(device))).to(device)


def freeze(model: Any, checkpointing: bool = False) -> nn.Module:
    """Switch off gradients and caches; optionally recompute activations in the backward pass."""
    model.requires_grad_(False)
    model.config.use_cache = False
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def _fills_gpu(model: Any, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return model.get_memory_footprint() > RECOMPUTE_SHARE * torch.cuda.get_device_properties(device).total_memory


def layers_without_full_attention(config: Any) -> dict[str, list[int]]:
    """Layer numbers by kind of attention, for all kinds but full attention; empty if a prefix can be shared."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    if kinds is None and getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        kinds = ["sliding_attention"] * text.num_hidden_layers
    odd: dict[str, list[int]] = {}
    for number, kind in enumerate(kinds or ()):
        if kind not in ("full_attention", "attention"):
            odd.setdefault(kind, []).append(number)
    return odd


def describe_layers(odd: Mapping[str, list[int]]) -> str:
    """Kinds and numbers of layers, for a message."""
    return "; ".join(f"layers {', '.join(map(str, numbers))} are {kind}" for kind, numbers in odd.items())
