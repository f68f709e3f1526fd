"""The engine for one process and one device: plain torch. Knows nothing of Ray, DeepSpeed or data."""

import torch

from metagen_ray.training.base import AdaptedModel
from metagen_ray.training.core import Batch, Snapshot
from metagen_ray.training.lora import Adapter
from metagen_ray.training.rows import Tree


class PlainEngine:
    """AdamW on one adapter of one model."""

    rank = 0
    world = 1

    def __init__(self, model: AdaptedModel) -> None:
        self.model = model
        self.optimizer = adamw(model)

    def groups(self, trees: list[Tree]) -> list[list[Tree]]:
        """Trees by pack."""
        return self.model.groups(trees)

    def step(self, batch: Batch, lr: float, clip: float) -> float:
        """One update; the mean loss per completion token before it."""
        total = torch.zeros((), device=self.model.device)
        for pack in batch.packs:
            loss = self.model(pack).sum() * (pack.weight / batch.tokens)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_([self.model.flat], clip)
        set_rate(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item()

    def reset(self, seed: int, weight_decay: float) -> None:
        """A fresh adapter drawn from `seed`, and an optimizer that has seen nothing."""
        with torch.no_grad():
            self.model.flat.copy_(self.model.slots.initial(seed))
        forget(self.optimizer, weight_decay)

    def snapshot(self) -> Snapshot:
        """Where the training stands."""
        return Snapshot(self.model.flat.detach().cpu().clone(), *moments(self.optimizer))

    def restore(self, snapshot: Snapshot, weight_decay: float) -> None:
        """Go on from a snapshot."""
        with torch.no_grad():
            self.model.flat.copy_(snapshot.flat)
        set_moments(self.optimizer, snapshot.first, snapshot.second, snapshot.updates, weight_decay)

    def adapter(self) -> Adapter:
        """The adapter under PEFT's names."""
        return self.model.slots.named(self.model.flat)


def adamw(model: AdaptedModel) -> torch.optim.AdamW:
    """AdamW over the adapter, with the constants of Hugging Face's trainer."""
    return torch.optim.AdamW([model.flat], lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def moments(optimizer: torch.optim.Optimizer) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Copies of Adam's two moments of the one parameter, and its count of updates."""
    (state,) = optimizer.state.values()
    return state["exp_avg"].cpu().clone(), state["exp_avg_sq"].cpu().clone(), float(state["step"])


def set_moments(
    optimizer: torch.optim.Optimizer, first: torch.Tensor, second: torch.Tensor, updates: float, weight_decay: float
) -> None:
    """The reverse of `moments`, on an optimizer that may not have stepped yet."""
    (group,) = optimizer.param_groups
    (parameter,) = group["params"]
    group["weight_decay"] = weight_decay
    optimizer.state[parameter] = {
        "step": torch.tensor(updates, dtype=torch.float32, device=parameter.device),
        "exp_avg": first.to(parameter.device, copy=True),
        "exp_avg_sq": second.to(parameter.device, copy=True),
    }


def forget(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Moments and step counts back to nothing, in place."""
    for group in optimizer.param_groups:
        group["weight_decay"] = weight_decay
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
