"""LoRA on a frozen decoder: where it goes, how it starts, its files in PEFT's format. Knows nothing of losses.

An adapter is one flat fp32 vector. Every LoRA pair is a view into it, so an optimizer, a clip, an all-reduce or a reset
handles one tensor where PEFT has two per layer; the numbers are PEFT's (tested against it). The files are those
`PeftModel.from_pretrained` and vLLM read.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

from metagen_ray.errors import InputError
from metagen_ray.study import Recipe

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
Adapter = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LoraShape:
    """What of a recipe decides the modules; jobs that agree in it can take turns on one engine."""

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
    """A frozen linear layer plus scaling * B A; A and B are lent by the adapter before each forward."""

    def __init__(self, base: nn.Linear, shape: LoraShape) -> None:
        super().__init__()
        self.base = base
        self.scaling = shape.alpha / shape.rank
        self.dropout = shape.dropout
        self.a: torch.Tensor | None = None
        self.b: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output with the adapter's part."""
        assert self.a is not None and self.b is not None, "the adapter lends its views before a forward"
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        if self.dropout and self.training:
            low = F.linear(F.dropout(x, self.dropout), a)
            return self.base(x) + F.linear(low, b) * self.scaling
        return _LoraProduct.apply(x, self.base.weight, self.base.bias, a, b, self.scaling)


class _LoraProduct(torch.autograd.Function):
    """x W' + bias + s (x A') B' in one node: on a small model half of a step is the cost of calling operators."""

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scaling):
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.t()
        out = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        out.addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, *grads):
        rows, low, weight, a, b = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        # With a narrow side MKL is 2-4 x slower on the plain forms (grad @ b, grad.t() @ low) than on these.
        grad_low = (grad @ b.t().contiguous().t()).mul_(ctx.scaling)
        grad_b = (low.t() @ grad).mul_(ctx.scaling).t()
        grad_x = (grad @ weight).addmm_(grad_low, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_low.t() @ rows, grad_b, None


class LoraSlots:
    """The LoRA pairs of one model in a fixed order, and their places in the flat vector."""

    def __init__(self, model: nn.Module, shape: LoraShape) -> None:
        self.shape = shape
        self.layers = _insert(model, shape)
        self.parts: list[tuple[str, tuple[int, int]]] = []
        for path, layer in self.layers.items():
            self.parts.append((f"base_model.model.{path}.lora_A.weight", (shape.rank, layer.base.in_features)))
            self.parts.append((f"base_model.model.{path}.lora_B.weight", (layer.base.out_features, shape.rank)))
        self.sizes = [rows * columns for _, (rows, columns) in self.parts]

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    def lend(self, flat: torch.Tensor) -> None:
        """Give every layer its views of `flat`; gradients flow back into it."""
        views = [v.view(size) for v, (_, size) in zip(flat.split(self.sizes), self.parts, strict=True)]
        for index, layer in enumerate(self.layers.values()):
            layer.a, layer.b = views[2 * index], views[2 * index + 1]

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
        targets = sorted({path.rsplit(".", 1)[-1] for path in self.layers})
        tensors = {name: adapter[name].contiguous() for name in sorted(adapter)}
        return {WEIGHTS: save(tensors, metadata={"format": "pt"}), CONFIG: self.shape.config_json(targets)}


def read_adapter(files: Mapping[str, bytes]) -> Adapter:
    """The named tensors of an adapter's files."""
    return load(files[WEIGHTS])


def _insert(model: nn.Module, shape: LoraShape) -> dict[str, LoraLinear]:
    """Put a LoraLinear in place of every target; their paths as keys, in module order."""
    layers = {}
    for path in _target_paths(model, shape.targets):
        parent, _, name = path.rpartition(".")
        holder = model.get_submodule(parent)
        layers[path] = LoraLinear(getattr(holder, name), shape)
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
