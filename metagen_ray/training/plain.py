"""The engine for one process and one device: plain torch. Knows nothing of Ray, DeepSpeed or data."""

from collections.abc import Sequence

import torch

from metagen_ray.errors import StageError
from metagen_ray.training.base import AdaptedModel
from metagen_ray.training.core import Batch, Pace, Snapshot
from metagen_ray.training.lora import Adapter
from metagen_ray.training.rows import Pack, Tree


class PlainEngine:
    """AdamW on the adapters of one model."""

    rank = 0
    world = 1

    def __init__(self, model: AdaptedModel) -> None:
        self.model = model
        self.slots = len(model.slots)
        self.optimizer = adamw(model)

    def groups(self, trees: list[Tree]) -> list[list[Tree]]:
        """Trees by pack."""
        return self.model.groups(trees)

    def step(self, batch: Batch, paces: Sequence[Pace]) -> list[float]:
        """One update; each slot's mean loss per completion token before it."""
        losses = torch.zeros(self.slots, device=self.model.device)
        for pack in batch.packs:
            loss_G = slot_losses(self.model(pack, batch.salts), pack, batch.tokens)
            loss_G.sum().backward()
            losses += loss_G.detach()
        clip([[flat.grad] for flat in self.model.flats], paces, [flat.grad.norm() for flat in self.model.flats])  # type: ignore[union-attr]
        set_rates(self.optimizer, paces)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses.tolist()

    def reset(self, seeds: Sequence[int], weight_decays: Sequence[float]) -> None:
        """Fresh adapters drawn from their seeds, and an optimizer that has seen nothing."""
        self.optimizer.zero_grad(set_to_none=True)  # what a step that failed half-way has left
        draw(self.model, seeds)
        forget(self.optimizer, weight_decays)

    def snapshot(self) -> Snapshot:
        """Where the training of the first slot stands."""
        return Snapshot(self.model.flats[0].detach().cpu().clone(), *moments(self.optimizer))

    def restore(self, snapshot: Snapshot, weight_decay: float) -> None:
        """Go on with the first slot from a snapshot."""
        with torch.no_grad():
            self.model.flats[0].copy_(snapshot.flat)
        set_moments(self.optimizer, snapshot.first, snapshot.second, snapshot.updates, weight_decay)

    def adapter(self, slot: int = 0) -> Adapter:
        """A slot's adapter under PEFT's names."""
        return self.model.slots[slot].named(self.model.flats[slot])

    def any_rank(self, wanted: bool) -> bool:
        """Itself: there is one rank."""
        return wanted

    def agreed(self, names: Sequence[str]) -> list[str]:
        """The same names: there is one rank."""
        return list(names)


def slot_losses(loss_C: torch.Tensor, pack: Pack, tokens: Sequence[int]) -> torch.Tensor:
    """A pack's part of every slot's mean loss, [G]; `tokens` are those of the whole step by slot."""
    slot_C = pack.slot_C.to(loss_C.device)
    per_token = torch.tensor([pack.weight / max(1, n) for n in tokens], device=loss_C.device)
    return loss_C.new_zeros(len(tokens)).index_add(0, slot_C, loss_C * per_token[slot_C])


def clip(gradients: Sequence[Sequence[torch.Tensor]], paces: Sequence[Pace], norms: Sequence[torch.Tensor]) -> None:
    """Scale each slot's gradient to its own norm limit; StageError names what is not finite."""
    for parts, pace, norm in zip(gradients, paces, torch.stack(list(norms)).tolist(), strict=True):
        if not norm < float("inf"):
            raise StageError(f"the gradient is not finite (norm {norm}); lower the learning rate ({pace.lr:g})")
        if norm > pace.clip:
            for gradient in parts:
                gradient.mul_(pace.clip / (norm + 1e-6))


def adamw(model: AdaptedModel) -> torch.optim.AdamW:
    """AdamW over the adapters, a group each, with the constants of Hugging Face's trainer."""
    groups = [{"params": [flat]} for flat in model.flats]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, paces: Sequence[Pace]) -> None:
    """The rates of the next step."""
    for group, pace in zip(optimizer.param_groups, paces, strict=True):
        group["lr"] = pace.lr


def draw(model: AdaptedModel, seeds: Sequence[int]) -> None:
    """Fresh adapters in the first slots, one a seed."""
    with torch.no_grad():
        for flat, slot, seed in zip(model.flats, model.slots, seeds, strict=False):
            flat.copy_(slot.initial(seed))


def moments(optimizer: torch.optim.Optimizer) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Copies of Adam's two moments of the first parameter, and its count of updates."""
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    return state["exp_avg"].cpu().clone(), state["exp_avg_sq"].cpu().clone(), float(state["step"])


def set_moments(
    optimizer: torch.optim.Optimizer, first: torch.Tensor, second: torch.Tensor, updates: float, weight_decay: float
) -> None:
    """The reverse of `moments`, on an optimizer that may not have stepped yet."""
    group = optimizer.param_groups[0]
    (parameter,) = group["params"]
    group["weight_decay"] = weight_decay
    optimizer.state[parameter] = {
        "step": torch.tensor(updates, dtype=torch.float32, device=parameter.device),
        "exp_avg": first.to(parameter.device, copy=True),
        "exp_avg_sq": second.to(parameter.device, copy=True),
    }


def forget(optimizer: torch.optim.Optimizer, weight_decays: Sequence[float]) -> None:
    """Moments and step counts back to nothing, in place; slots beyond those given keep no decay."""
    for number, group in enumerate(optimizer.param_groups):
        group["weight_decay"] = weight_decays[number] if number < len(weight_decays) else 0.0
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
