"""An adapter merged into its base: a model directory of its own. Owns the sum; knows no engine and no study.

W + scaling B A is computed in fp32 from the clean base's files and rounded once, so a merged model is as exact as its
number format; an adapter taken off again in place would leave rounding behind.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from metagen_ray.errors import InputError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
REFUSED = ("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern")


def merge(base_dir: Path, adapter_dir: Path, out_dir: Path) -> None:
    """Write the model `base + adapter` into `out_dir`, one weights file after another; memory holds one of them.

    InputError where the adapter has what a plain sum cannot express, or names a layer that the base has not.
    """
    config = json.loads((adapter_dir / CONFIG).read_text(encoding="utf-8"))
    odd = [name for name in REFUSED if config.get(name)]
    if odd or config.get("bias", "none") != "none":
        raise InputError(
            f"{adapter_dir}: an adapter with {odd[0] if odd else 'bias'} cannot be merged; serve it as LoRA"
        )
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    pairs = _pairs(load_file(adapter_dir / WEIGHTS))
    out_dir.mkdir(parents=True, exist_ok=True)
    merged: set[str] = set()
    for path in base_dir.iterdir():
        if path.suffix == ".safetensors":
            merged |= _merge_file(path, out_dir / path.name, pairs, scaling)
        elif path.suffix not in (".bin", ".pt", ".pth") and path.is_file():
            shutil.copyfile(path, out_dir / path.name)
    missing = sorted(set(pairs) - merged)
    if missing:
        raise InputError(f"{adapter_dir}: the base in {base_dir} has no {missing[0]}; the adapter is of another base")


def is_finite(adapter_dir: Path) -> bool:
    """Whether all weights are numbers: in a batch that several share, others' answers would be none either.

    True where the file cannot be read, which whoever loads it says better.
    """
    try:
        return all(bool(tensor.isfinite().all()) for tensor in load_file(adapter_dir / WEIGHTS).values())
    except (OSError, SafetensorError):
        return True


def _pairs(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Name of a weight of the base -> its (A, B)."""
    layers = {name.rsplit(".lora_", 1)[0] for name in tensors}
    return {
        f"{layer.removeprefix(PREFIX)}.weight": (tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"])
        for layer in layers
    }


def _merge_file(
    path: Path, out: Path, pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], scaling: float
) -> set[str]:
    """One file of the base with its share of the pairs added; returns the names of the weights that got one."""
    with safe_open(path, framework="pt") as base:
        tensors = {name: base.get_tensor(name) for name in base.keys()}  # noqa: SIM118  # no mapping
        metadata = base.metadata()
    changed = set(tensors) & set(pairs)
    for name in changed:
        (a, b), weight = pairs[name], tensors[name]
        tensors[name] = (weight.float() + scaling * (b.float() @ a.float())).to(weight.dtype)
    save_file(tensors, out, metadata=metadata)
    return changed
