"""The base models that are measured on: about 1M and 10M parameters, and on a GPU the shapes of Qwen3.

`1M` is the shipped lab base. `10M` is wider and deeper, of the same architecture and tokenizer, with random weights.
The GPU sizes have the public shapes of Qwen3-0.6B and Qwen3-4B with random weights, and the lab's tokenizer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metagen_ray.base_model import find_base
from metagen_ray.lab.pretrain import PretrainConfig, make_model
from metagen_ray.lab.tokenizer import save_tokenizer
from metagen_ray.lab.world import world
from metagen_ray.training.base import freeze, load_base

CPU_SIZES = ("1M", "10M")
GPU_SIZES = ("0.6B", "4B")
QWEN3: dict[str, dict[str, Any]] = {  # config.json of Qwen/Qwen3-0.6B and Qwen/Qwen3-4B
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
QWEN3_ALL: dict[str, Any] = {
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}


@dataclass(frozen=True, slots=True)
class Base:
    """A base of one size. `directory` holds configuration and tokenizer, and for the CPU sizes the weights."""

    size: str
    directory: Path

    @property
    def device(self) -> str:
        """Where this size is measured."""
        return "cuda" if self.size in GPU_SIZES else "cpu"

    def load(self) -> nn.Module:
        """The frozen decoder: fp32 on the CPU, bf16 on a GPU. The same weights every time."""
        if self.size in CPU_SIZES:
            return load_base(self.directory)
        return freeze(random_qwen3(self.size, self.device))

    def tokenizer(self) -> Any:
        """The lab's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.directory, trust_remote_code=False, local_files_only=True)


def sizes() -> tuple[str, ...]:
    """What this machine is measured at."""
    return GPU_SIZES if torch.cuda.is_available() else CPU_SIZES


def make_base(size: str, folder: Path) -> Base:
    """The base of a size; files that have to be made go into `folder`. KeyError for a size that is not known."""
    if size == "1M":
        return Base(size, find_base("lab:informative").directory)
    directory = folder / f"base-{size}"
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(world(), directory)
    if size == "10M":
        torch.manual_seed(0)
        make_model(PretrainConfig(rho=0.5, hidden=320, layers=8), tokenizer).save_pretrained(directory)
    else:
        _qwen3_config(size).save_pretrained(directory)
    return Base(size, directory)


def _qwen3_config(size: str) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**QWEN3[size], **QWEN3_ALL)


def random_qwen3(size: str, device: str) -> nn.Module:
    """Random bf16 weights, made where they stay: a CPU would draw those of 4B parameters for minutes."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(_qwen3_config(size), dtype=torch.bfloat16, attn_implementation="sdpa")
