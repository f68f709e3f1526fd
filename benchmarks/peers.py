"""What a user would pick instead for training: TRL's SFTTrainer with PEFT, and a plain PEFT loop where TRL is missing.

Both get the rows, the order, the starting weights and the recipe of ours, already tokenised, and do nothing beside
training: no logging, no saving, no evaluation, loading in process. Only this file imports PEFT and TRL.
"""

import importlib.util
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.bases import Base
from benchmarks.measure import fastest
from metagen_ray.study import Recipe
from metagen_ray.training.rows import Tree

T = TypeVar("T")
Adapter = Mapping[str, torch.Tensor]
IGNORED = -100  # the label that Hugging Face's losses leave out
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True, slots=True)
class Way:
    """How a peer is set: rows it reads at once, what it does about their lengths.

    `sorted_steps` sorts the rows inside each optimizer step, which changes no step; `grouped` lets the trainer make
    steps of rows of like length, which changes them.
    """

    micro_rows: int
    padding_free: bool = False
    grouped: bool = False
    sorted_steps: bool = False

    def laid(self, rows: Sequence[Tree], batch_rows: int) -> Sequence[Tree]:
        """The rows in the order they are fed."""
        if not self.sorted_steps:
            return rows
        return [row for step in cut(rows, batch_rows) for row in sorted(step, key=Tree.read_tokens)]

    def __str__(self) -> str:
        """The setting in words."""
        padding = "padding-free" if self.padding_free else "grouped by length" if self.grouped else "padded"
        return f"{padding}, {self.micro_rows} rows at once" + (", sorted inside steps" if self.sorted_steps else "")


class Peer(Protocol):
    """Trains one adapter on plain rows in their order, cut into steps of `recipe.batch_rows`."""

    name: str

    def takes(self, way: Way) -> bool:
        """Whether it has this setting."""
        ...

    def prepare(self, rows: Sequence[Tree], way: Way) -> Any:
        """The rows as the peer takes them; not part of what is timed."""
        ...

    def train(self, prepared: Any, start: Adapter, way: Way) -> None:
        """Train from these weights."""
        ...

    def adapter(self) -> dict[str, torch.Tensor]:
        """The trained weights under PEFT's names."""
        ...


class Rounds:
    """The peer that is installed here, with its rows prepared: lives in a process of its own."""

    def __init__(self, base: Base, recipe: Recipe) -> None:
        self.base, self.recipe = base, recipe
        self.peer: Peer = Trl(base, recipe) if importlib.util.find_spec("trl") else PeftLoop(base, recipe)
        self._work: list[tuple[Any, Adapter, Way]] = []
        self._adapters: list[dict[str, torch.Tensor]] = []

    def name(self) -> str:
        """What it is."""
        return self.peer.name

    def choose(self, ways: Sequence[Way], rows: Sequence[Tree], start: Adapter) -> Way:
        """The fastest way to train on these rows, of those that the peer has."""
        had = [way for way in ways if self.peer.takes(way)]
        works = {str(way): partial(self.peer.train, self._prepared(rows, way), start, way) for way in had}
        best = fastest(works)
        return next(way for way in ways if str(way) == best)

    def load(self, way: Way, orders: Sequence[Sequence[Tree]], starts: Sequence[Adapter]) -> None:
        """What `run` trains, one after another."""
        self._work = [(self._prepared(rows, way), start, way) for rows, start in zip(orders, starts, strict=True)]

    def run(self) -> None:
        """Train all."""
        self._adapters.clear()
        for prepared, start, way in self._work:
            self.peer.train(prepared, start, way)
            self._adapters.append(self.peer.adapter())

    def adapters(self) -> list[dict[str, torch.Tensor]]:
        """What the last `run` has trained."""
        return self._adapters

    def control(self, orders: Sequence[Sequence[Tree]], starts: Sequence[Adapter]) -> float:
        """Largest relative gap of what the last `run` has trained from a plain PEFT loop's: two peers' disagreement."""
        loop, way, gaps = PeftLoop(self.base, self.recipe), Way(self.recipe.batch_rows), []
        for rows, start, trained in zip(orders, starts, self._adapters, strict=True):
            loop.train(loop.prepare(rows, way), start, way)
            gaps.append(relative_gap(trained, loop.adapter()))
        return max(gaps)

    def _prepared(self, rows: Sequence[Tree], way: Way) -> Any:
        return self.peer.prepare(way.laid(rows, self.recipe.batch_rows), way)


def laid(trees: Sequence[Tree], recipe: Recipe, seed: int) -> list[Tree]:
    """Rows of all epochs in the order in which our loop trains them. ValueError where an epoch ends inside a step."""
    if len(trees) % recipe.batch_rows:
        raise ValueError(f"{len(trees)} rows do not fill steps of {recipe.batch_rows}; the peer's steps would differ")
    orders = (np.random.default_rng([seed, epoch]).permutation(len(trees)) for epoch in range(recipe.epochs))
    return [trees[i] for order in orders for i in order]


class Trl:
    """TRL's trainer on a PEFT model that stays loaded; a new trainer for every training, as its design demands."""

    name = "TRL SFTTrainer + PEFT"

    def __init__(self, base: Base, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tokenizer = base.tokenizer()
        self.model = lora_model(base.load(), recipe)
        self._room = tempfile.TemporaryDirectory(prefix="metagen-trl-")

    def takes(self, way: Way) -> bool:
        """All of them."""
        return True

    def prepare(self, rows: Sequence[Tree], way: Way) -> Any:
        """A data set of token ids and labels, which TRL does not have to prepare any more."""
        from datasets import Dataset

        return Dataset.from_list([{"input_ids": ids, "labels": labels} for ids, labels in map(labelled, rows)])

    def train(self, prepared: Any, start: Adapter, way: Way) -> None:
        """One training, from the making of the trainer to its end."""
        from transformers import PrinterCallback
        from trl import SFTTrainer

        set_weights(self.model, start)
        trainer = SFTTrainer(self.model, self._settings(way), train_dataset=prepared, processing_class=self.tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    def adapter(self) -> dict[str, torch.Tensor]:
        """The trained weights under PEFT's names."""
        return weights(self.model)

    def _settings(self, way: Way) -> Any:
        from trl import SFTConfig

        recipe, on_cpu = self.recipe, next(self.model.parameters()).device.type == "cpu"
        return SFTConfig(
            output_dir=self._room.name,
            per_device_train_batch_size=way.micro_rows,
            gradient_accumulation_steps=recipe.batch_rows // way.micro_rows,
            num_train_epochs=1,  # the rows of all epochs are laid one after the other
            learning_rate=recipe.lr,
            lr_scheduler_type=SCHEDULES[recipe.schedule],
            warmup_steps=recipe.warmup_share,
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.clip,
            train_sampling_strategy="group_by_length" if way.grouped else "sequential",
            padding_free=way.padding_free,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            gradient_checkpointing=False,
            use_cpu=on_cpu,
            bf16=not on_cpu,
        )


class PeftLoop:
    """PEFT in a loop of one's own: padded batches, AdamW with the constants of Hugging Face's trainer.

    Logits are computed where a label is, as TRL does: a head of 150,000 words on every position would be a straw man.
    """

    name = "a plain PEFT loop"

    def __init__(self, base: Base, recipe: Recipe) -> None:
        self.recipe = recipe
        self.device = torch.device(base.device)
        self.model = lora_model(base.load(), recipe)

    def takes(self, way: Way) -> bool:
        """Padding alone: the order of rows is the caller's."""
        return not (way.padding_free or way.grouped)

    def prepare(self, rows: Sequence[Tree], way: Way) -> list[list[dict[str, torch.Tensor]]]:
        """Steps of padded parts."""
        steps = cut(rows, self.recipe.batch_rows)
        return [[padded(part) for part in cut(step, way.micro_rows)] for step in steps]

    def train(self, prepared: list[list[dict[str, torch.Tensor]]], start: Adapter, way: Way) -> None:
        """One training."""
        from transformers import get_scheduler

        set_weights(self.model, start)
        recipe, steps = self.recipe, len(prepared)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        warmup = math.ceil(recipe.warmup_share * steps)
        schedule = get_scheduler(SCHEDULES[recipe.schedule], optimizer, warmup, steps)
        for parts in prepared:
            self.backward(parts)
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)

    def backward(self, parts: Sequence[dict[str, torch.Tensor]]) -> None:
        """Gradient of one step: the mean loss over the labels of all its parts."""
        labels = sum(int((part["labels"] != IGNORED).sum()) for part in parts)
        for part in parts:
            (self._loss({name: tensor.to(self.device) for name, tensor in part.items()}) / labels).backward()

    def gradients(self) -> dict[str, torch.Tensor]:
        """What `backward` has left, under PEFT's names."""
        return {name: p.grad.to("cpu", torch.float32) for name, p in _trained(self.model) if p.grad is not None}

    def load(self, start: Adapter) -> None:
        """Put these weights in."""
        set_weights(self.model, start)

    @torch.inference_mode()
    def score(self, rows: Sequence[Tree], micro_rows: int) -> list[float]:
        """Log-likelihood of each completion, read in parts of like length."""
        order = sorted(range(len(rows)), key=lambda i: rows[i].read_tokens())
        found: dict[int, float] = {}
        for part in cut(order, micro_rows):
            batch = {name: tensor.to(self.device) for name, tensor in padded([rows[i] for i in part]).items()}
            found |= zip(part, self._row_sums(batch), strict=True)
        return [found[i] for i in range(len(rows))]

    def adapter(self) -> dict[str, torch.Tensor]:
        """The trained weights under PEFT's names."""
        return weights(self.model)

    def _loss(self, part: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._losses(part).sum()

    def _row_sums(self, part: dict[str, torch.Tensor]) -> list[float]:
        row = (part["labels"][:, 1:] != IGNORED).nonzero()[:, 0]
        sums = torch.zeros(len(part["labels"]), dtype=torch.float64, device=self.device)
        return (-sums.index_add_(0, row, self._losses(part).double())).tolist()

    def _losses(self, part: dict[str, torch.Tensor]) -> torch.Tensor:
        """-log p of every labelled token, row after row."""
        decoder = self.model.get_base_model()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            read = decoder.model(input_ids=part["input_ids"], attention_mask=part["attention_mask"], use_cache=False)
            target = part["labels"][:, 1:]
            logits = decoder.lm_head(read.last_hidden_state[:, :-1][target != IGNORED])
        return F.cross_entropy(logits.float(), target[target != IGNORED], reduction="none")


def lora_model(base: Any, recipe: Recipe) -> Any:
    """Stock PEFT on the base, with the recipe's shape."""
    from peft import LoraConfig, get_peft_model

    targets = recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets)
    lora = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # PEFT takes floats
        lora_dropout=recipe.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora)


def set_weights(model: Any, start: Adapter) -> None:
    """Overwrite the adapter of a PEFT model."""
    with torch.no_grad():
        for name, parameter in _trained(model):
            parameter.copy_(start[name])
            parameter.grad = None


def weights(model: Any) -> dict[str, torch.Tensor]:
    """The adapter of a PEFT model, fp32 on the CPU."""
    return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in _trained(model)}


def largest_gap(ours: Adapter, theirs: Adapter) -> float:
    """Largest absolute difference of two adapters' numbers. ValueError where they have other tensors."""
    if set(ours) != set(theirs):
        raise ValueError(f"the adapters differ in {sorted(set(ours) ^ set(theirs))[0]}")
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def relative_gap(ours: Adapter, theirs: Adapter) -> float:
    """Norm of the difference of two adapters over the norm of the second. ValueError as `largest_gap`.

    Single numbers differ by more: where a gradient is close to Adam's eps of 1e-8, its last digit decides the step.
    """
    if set(ours) != set(theirs):
        raise ValueError(f"the adapters differ in {sorted(set(ours) ^ set(theirs))[0]}")
    apart = sum((ours[name] - theirs[name]).square().sum().item() for name in ours)
    return (apart / sum(weight.square().sum().item() for weight in theirs.values())) ** 0.5


def labelled(row: Tree) -> tuple[list[int], list[int]]:
    """Token ids of a plain row, and its labels: the completion."""
    (branch,) = row.branches
    prompt = [*row.prefix, *branch.prompt]
    return [*prompt, *branch.completion], [*[IGNORED] * len(prompt), *branch.completion]


def padded(rows: Sequence[Tree]) -> dict[str, torch.Tensor]:
    """A batch of plain rows, padded on the right."""
    full = [labelled(row) for row in rows]
    longest = max(len(ids) for ids, _ in full)
    shape = (len(full), longest)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    for i, (ids, labels) in enumerate(full):
        batch["input_ids"][i, : len(ids)] = torch.tensor(ids)
        batch["labels"][i, : len(ids)] = torch.tensor(labels)
        batch["attention_mask"][i, : len(ids)] = 1
    return batch


def cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Parts of `size` items; the last may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def _trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(_plain(name), p) for name, p in model.named_parameters() if p.requires_grad]


def _plain(name: str) -> str:
    return name.replace(".default", "")
