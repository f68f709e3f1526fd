"""One adapter trained by stock PEFT: padded batches, Hugging Face's loss and schedules, torch's clip."""

from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, get_scheduler

from metagen_ray.study import Recipe
from metagen_ray.training.lora import Slot
from metagen_ray.training.rows import Tree


def stock_peft(model_dir: Path, slot: Slot, directory: Path, seed: int) -> PeftModel:
    """The base with a slot's starting adapter, loaded by PEFT from the files we write."""
    directory.mkdir()
    for name, data in slot.files(slot.named(slot.initial(seed))).items():
        (directory / name).write_bytes(data)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    return PeftModel.from_pretrained(base, directory, is_trainable=True)


def padded(rows: list[Tree]) -> dict[str, torch.Tensor]:
    full = [(r.branches[0].prompt, r.branches[0].completion) for r in rows]
    longest = max(len(p) + len(c) for p, c in full)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for i, (prompt, completion) in enumerate(full):
        size = len(prompt) + len(completion)
        ids[i, :size] = torch.tensor(prompt + completion)
        labels[i, len(prompt) : size] = torch.tensor(completion)
        mask[i, :size] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def orders(seed: int, count: int, epochs: int) -> list[list[int]]:
    return [np.random.default_rng([seed, e]).permutation(count).tolist() for e in range(epochs)]


def peft_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    return {n.replace(".default", ""): p.detach() for n, p in model.named_parameters() if p.requires_grad}


# How far two fp32 trainings may be apart that are one on paper. Processors add up products in other orders, and Adam
# makes whole steps of a gradient's last digits: 2e-6 to 1.4e-5 was seen. In fp64 the same trainings are 2.4e-8 apart,
# which is what the fp32 copy of the weights loses.
PARITY = 3e-5
PARITY_FP64 = 1e-7


def largest_gap(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert set(ours) == set(theirs)
    return max((ours[n] - theirs[n]).abs().max().item() for n in ours)


def relative_gap(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over norm of the weights. Single entries can differ by more: where a gradient is close to
    Adam's eps of 1e-8, its last digit decides the step. `pytest -rP` shows it.
    """
    assert set(ours) == set(theirs)
    apart = sum((ours[n] - theirs[n]).square().sum().item() for n in ours)
    gap = (apart / sum(theirs[n].square().sum().item() for n in theirs)) ** 0.5
    print(f"relative gap {gap:.1e}")
    return gap


def train_peft(peft: PeftModel, rows: list[Tree], recipe: Recipe, seed: int) -> list[float]:
    """Train in our order of rows; the loss of every step."""
    params = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=recipe.lr, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(rows) // recipe.batch_rows)
    name = "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
    schedule = get_scheduler(name, optimizer, int(np.ceil(recipe.warmup_share * steps)), steps)
    losses = []
    for order in orders(seed, len(rows), recipe.epochs):
        for start in range(0, len(rows), recipe.batch_rows):
            loss = peft(**padded([rows[i] for i in order[start : start + recipe.batch_rows]])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, recipe.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses
