"""LoRA on a frozen decoder: where it goes, how it starts, its files in PEFT's format. Knows nothing of losses.

A bank is one or more adapters on one model; every token of a pack is read with its own. An adapter is one flat fp32
vector. Every LoRA pair is a view into it, so an optimizer, a clip, an all-reduce or a reset handles one tensor where
PEFT has two per layer; the numbers are PEFT's (tested against it). The files are those `PeftModel.from_pretrained` and
vLLM read.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from safetensors.torch import load, save
from torch import nn

from metagen_ray.errors import InputError
from metagen_ray.study import Recipe
from metagen_ray.training.dropout import Drops
from metagen_ray.training.product import Banked, banked_linear

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
Adapter = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LoraShape:
    """What of a recipe decides the modules; jobs that agree in it can share an engine."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | str

    @classmethod
    def of(cls, recipe: Recipe) -> "LoraShape":
        """The shape a recipe asks for."""
        return cls(recipe.rank, recipe.alpha, recipe.dropout, recipe.targets)

    def config_json(self, target_modules: list[str]) -> bytes:
        """adapter_config.json; its text depends on nothing but the shape."""
        config = {
            "base_model_name_or_path": None,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": sorted(target_modules),
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        }
        return json.dumps(config, indent=1, sort_keys=True).encode()


class LoraLinear(nn.Module):
    """A frozen linear layer plus scaling * B A of each token's adapter; the bank lends pairs before each forward."""

    def __init__(self, base: nn.Linear, number: int, bank: "Bank") -> None:
        super().__init__()
        self.base = base
        self.number = number
        self.lent = bank.lent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output with the adapters' part."""
        lent = self.lent
        assert lent.how is not None, "the bank lends its pairs before a forward"
        drop = lent.drops.scale(self.number, x.shape[-1]).to(x.dtype) if lent.drops else None
        weight, bias = self.base.weight, self.base.bias
        return banked_linear(x, weight, bias, lent.pairs[self.number], lent.how, drop)


@dataclass(slots=True)
class Lent:
    """What the layers read of the adapters during one forward."""

    pairs: list[list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=list)  # [layer][slot]
    how: Banked | None = None
    drops: Drops | None = None


class Bank:
    """The LoRA pairs of one model for one or several adapters, which may differ in all but their targets."""

    def __init__(self, model: nn.Module, shapes: Sequence[LoraShape]) -> None:
        targets = {shape.targets for shape in shapes}
        if len(targets) != 1:
            raise InputError(f"adapters of one bank have the same targets; these have {sorted(map(str, targets))}")
        self.lent = Lent()
        self.layers = _insert(model, targets.pop(), self)
        self.slots = [Slot(shape, self.layers) for shape in shapes]

    def lend(self, flats: Sequence[torch.Tensor], dtype: torch.dtype, how: Banked, drops: Drops | None = None) -> None:
        """Give every layer its views of the adapters; gradients flow back into all of them, 0 where none were read."""
        by_slot = self._together(flats, dtype, how) if how.even else self._apart(flats, dtype)
        layers = range(len(self.layers))
        self.lent.pairs = [[(views[2 * n], views[2 * n + 1]) for views in by_slot] for n in layers]
        self.lent.how, self.lent.drops = how, drops

    def _apart(self, flats: Sequence[torch.Tensor], dtype: torch.dtype) -> list[list[torch.Tensor]]:
        """The parts of each slot."""
        whole = torch.cat(list(flats)).to(dtype)
        views = iter(whole.split([size for slot in self.slots for size in slot.sizes]))
        return [[next(views).view(shape) for _, shape in slot.parts] for slot in self.slots]

    def _together(self, flats: Sequence[torch.Tensor], dtype: torch.dtype, how: Banked) -> list[list[torch.Tensor]]:
        """The parts of the slots that are read, each as one tensor [slots read, ...]: as many views as for one."""
        whole, first = torch.stack(list(flats)).to(dtype), self.slots[0]
        if len(how.segments) < len(flats):
            whole = whole[[slot for slot, _, _ in how.segments]]
        views = zip(whole.split(first.sizes, dim=1), first.parts, strict=True)
        return [[view.view(-1, *shape) for view, (_, shape) in views]]


class Slot:
    """One adapter's place in a bank: the order and the shapes of its pairs in the flat vector."""

    def __init__(self, shape: LoraShape, layers: Mapping[str, LoraLinear]) -> None:
        self.shape = shape
        self.modules = sorted({path.rsplit(".", 1)[-1] for path in layers})
        self.parts: list[tuple[str, tuple[int, int]]] = []
        for path, layer in layers.items():
            self.parts.append((f"base_model.model.{path}.lora_A.weight", (shape.rank, layer.base.in_features)))
            self.parts.append((f"base_model.model.{path}.lora_B.weight", (layer.base.out_features, shape.rank)))
        self.sizes = [rows * columns for _, (rows, columns) in self.parts]

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    def initial(self, seed: int) -> torch.Tensor:
        """A fresh adapter as PEFT starts it: A uniform in +-1/sqrt(inputs), B zero; drawn on the CPU by `seed`."""
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for name, (rows, columns) in self.parts:
            part = torch.zeros(rows * columns)
            if name.endswith("lora_A.weight"):
                part.uniform_(-1 / math.sqrt(columns), 1 / math.sqrt(columns), generator=generator)
            drawn.append(part)
        return torch.cat(drawn)

    def named(self, flat: torch.Tensor) -> Adapter:
        """The flat vector as PEFT's named fp32 tensors on the CPU."""
        copy = flat.detach().to("cpu", torch.float32, copy=True)
        return {name: v.view(size) for v, (name, size) in zip(copy.split(self.sizes), self.parts, strict=True)}

    def flat(self, adapter: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The reverse of `named`; InputError if the adapter was made for other modules or another rank."""
        expected = dict(self.parts)
        odd = [n for n in {*expected, *adapter} if n not in adapter or tuple(adapter[n].shape) != expected.get(n)]
        if odd:
            raise InputError(
                f"the adapter does not fit this model and recipe: {sorted(odd)[0]} is missing, extra or misshapen"
            )
        return torch.cat([adapter[name].reshape(-1).to("cpu", torch.float32) for name, _ in self.parts])

    def files(self, adapter: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
        """The adapter's directory in PEFT's format, as bytes by file name."""
        tensors = {name: adapter[name].contiguous() for name in sorted(adapter)}
        return {WEIGHTS: save(tensors, metadata={"format": "pt"}), CONFIG: self.shape.config_json(self.modules)}


def read_adapter(files: Mapping[str, bytes]) -> Adapter:
    """The named tensors of an adapter's files."""
    return load(files[WEIGHTS])


def _insert(model: nn.Module, targets: tuple[str, ...] | str, bank: Bank) -> dict[str, LoraLinear]:
    """Put a LoraLinear in place of every target; their paths as keys, in module order."""
    layers = {}
    for path in _target_paths(model, targets):
        parent, _, name = path.rpartition(".")
        holder = model.get_submodule(parent)
        layers[path] = LoraLinear(getattr(holder, name), len(layers), bank)
        setattr(holder, name, layers[path])
    return layers


def _target_paths(model: nn.Module, targets: tuple[str, ...] | str) -> list[str]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if targets == "all-linear":
        return linear
    names = {path.rsplit(".", 1)[-1] for path in linear}
    unknown = sorted(set(targets) - names)
    if unknown:
        raise InputError(
            f"recipe targets {', '.join(unknown)}: no such linear layer; the model has {', '.join(sorted(names))}"
        )
    return [path for path in linear if path.rsplit(".", 1)[-1] in targets]
