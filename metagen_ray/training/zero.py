"""The DeepSpeed engine: ZeRO 0 to 3 over torch.distributed. Owns DeepSpeed's traps; knows nothing of Ray or data.

torch.distributed must be up (Ray Train does it; `start_alone` for one process). An adapter is one flat tensor, so
DeepSpeed handles one parameter and one group an adapter, whatever the model. Stage 3 is for a base that one device
cannot hold: its frozen weights lie in parts over the ranks and are gathered layer by layer, while the adapters, which
are small, train as in stage 1. So banks, clips and checkpoints are the same at every stage.
"""

import importlib
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from metagen_ray.study import SHARDED_STAGE
from metagen_ray.training.base import AdaptedModel
from metagen_ray.training.core import Batch, Pace, Snapshot
from metagen_ray.training.lora import Adapter
from metagen_ray.training.plain import adamw, clip, draw, forget, moments, set_moments, set_rates, slot_losses
from metagen_ray.training.rows import Tree

KEPT_WHOLE = 16_384  # norms and biases: smaller than what gathering them costs


class DeepSpeedEngine:
    """The step engine of a lane or of meta-SFT; every rank calls every method.

    One engine serves all adapters of a process: a second deepspeed.initialize leaks what the first one held.
    """

    def __init__(self, model: AdaptedModel, zero_stage: int, device: torch.device | str = "cpu") -> None:
        self.model = model
        self.slots = len(model.slots)
        self.zero_stage = 1 if zero_stage == SHARDED_STAGE else zero_stage  # of the adapters
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.shards = _shard(model, device) if zero_stage == SHARDED_STAGE else None
        self.optimizer = adamw(model)
        self.engine: Any = _initialize(model, self.optimizer, self.zero_stage)

    def groups(self, trees: list[Tree]) -> list[list[Tree]]:
        """Trees by pack."""
        return self.model.groups(trees)

    def step(self, batch: Batch, paces: Sequence[Pace]) -> list[float]:
        """One update; each slot's mean loss per completion token over all ranks before it."""
        mine = torch.zeros(self.slots, device=self.model.device)
        for number, pack in enumerate(batch.packs, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(batch.packs))
            loss_G = slot_losses(self.engine(pack, batch.salts), pack, batch.tokens)
            self.engine.backward(loss_G.sum() * self.world)  # DeepSpeed averages over ranks, the loss is a sum
            if self.shards:
                self.shards.partition_all_parameters()  # what no backward hook has let go of
            mine += loss_G.detach()
        losses = self._clip(paces, mine)
        set_rates(self.optimizer, paces)
        self.engine.step()
        return losses

    def reset(self, seeds: Sequence[int], weight_decays: Sequence[float]) -> None:
        """Fresh adapters drawn from their seeds, in ZeRO's partitions too, and an optimizer without memory."""
        self._drop_gradients()
        draw(self.model, seeds)
        self._spread_weights()
        forget(self.optimizer, weight_decays)

    def snapshot(self) -> Snapshot:
        """Where the training of the first slot stands; the ranks' parts of the moments are put together."""
        first, second, updates = moments(self.optimizer)
        return Snapshot(self.model.flats[0].detach().cpu().clone(), self._whole(first), self._whole(second), updates)

    def restore(self, snapshot: Snapshot, weight_decay: float) -> None:
        """Go on with the first slot from a snapshot of any world."""
        self._drop_gradients()
        with torch.no_grad():
            self.model.flats[0].copy_(snapshot.flat)
        self._spread_weights()
        first, second = self._part(snapshot.first), self._part(snapshot.second)
        set_moments(self.optimizer, first, second, snapshot.updates, weight_decay)

    def adapter(self, slot: int = 0) -> Adapter:
        """A slot's adapter under PEFT's names; ZeRO has gathered it after every step."""
        return self.model.slots[slot].named(self.model.flats[slot])

    def any_rank(self, wanted: bool) -> bool:
        """Whether any rank wants it."""
        if self.world == 1:
            return wanted
        told = torch.tensor([float(wanted)], device=self.model.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told.item())

    def agreed(self, names: Sequence[str]) -> list[str]:
        """What rank 0 brings, on every rank."""
        told = [list(names)]
        if self.world > 1:
            dist.broadcast_object_list(told, src=0)
        return told[0]

    def _spread_weights(self) -> None:
        """Bring ZeRO's own fp32 copies of this rank's parts in line with the adapters."""
        if self.zero_stage:
            self.engine.optimizer.refresh_fp32_params()

    def _whole(self, part: torch.Tensor) -> torch.Tensor:
        """All ranks' parts of a vector as long as the adapter, without ZeRO's padding."""
        if not self.zero_stage or self.world == 1:
            return part[: self.model.flats[0].numel()]
        part = part.to(self.model.device)
        parts = [torch.empty_like(part) for _ in range(self.world)]
        dist.all_gather(parts, part)
        return torch.cat(parts)[: self.model.flats[0].numel()].cpu()

    def _part(self, whole: torch.Tensor) -> torch.Tensor:
        """The part of such a vector that is this rank's, padded as ZeRO pads."""
        (parameter,) = self.optimizer.param_groups[0]["params"]
        size = parameter.numel()
        padded = torch.zeros(size * (self.world if self.zero_stage else 1))
        padded[: len(whole)] = whole
        return padded[self.rank * size : (self.rank + 1) * size] if self.zero_stage else padded

    def _drop_gradients(self) -> None:
        """What a step that failed half-way has left; it would be added to the next adapter's first gradient."""
        for flat in self.model.flats:
            flat.grad = None
        if self.zero_stage:
            zero = self.engine.optimizer
            zero.zero_grad()
            for group in zero.averaged_gradients:
                zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None

    def _clip(self, paces: Sequence[Pace], losses: torch.Tensor) -> list[float]:
        """Scale each adapter's gradient to its own limit; returns the losses summed over ranks, in the same all-reduce.

        DeepSpeed's own clip is one norm over all parameters, which a bank of adapters cannot use; and it skips a step
        with an infinite gradient without a word.
        """
        if self.zero_stage:
            held = self.engine.optimizer.averaged_gradients  # this rank's partitions by group; p.grad is None
            gradients, share = [held[slot] for slot in range(self.slots)], 1.0
        else:
            gradients, share = [[flat.grad] for flat in self.model.flats], 1.0 / self.world  # whole on every rank
        squares = [torch.stack([g.square().sum() for g in parts]).sum() * share for parts in gradients]
        sums = torch.cat([torch.stack(squares), losses])
        if self.world > 1:
            dist.all_reduce(sums)
        clip(gradients, paces, list(sums[: self.slots].sqrt()))
        return sums[self.slots :].tolist()


def start_alone() -> None:
    """torch.distributed with this process as the whole world, for an engine outside Ray; does nothing if it is up."""
    if dist.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def import_deepspeed() -> Any:
    """DeepSpeed, quiet, and without its run-time C++ build of a shared-memory all-reduce (70 s, needs a compiler)."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    # DeepSpeed compiles its Muon optimizer, which nobody here uses: importing torch's compiler costs 0.7 s and 90 MiB.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed = importlib.import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    compatible = importlib.import_module("deepspeed.ops").__compatible_ops__
    compatible["deepspeed_shm_comm"] = False
    return deepspeed


def _shard(model: AdaptedModel, device: torch.device | str) -> Any:
    """Leave each rank its part of the frozen base; layers gather their weights before they read, and let go after."""
    deepspeed = import_deepspeed()
    deepspeed.init_distributed(dist_init_required=False)  # takes up the one that stands
    offload = importlib.import_module("deepspeed.runtime.zero.parameter_offload").DeepSpeedZeRoOffload
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": SHARDED_STAGE}}
    shards = offload(
        model.base,
        timers=importlib.import_module("deepspeed.utils.timer").NoopTimer(),
        ds_config=config,
        overlap_comm=torch.device(device).type == "cuda",
        param_persistence_threshold=KEPT_WHOLE,
    )
    for layer in model.bank.layers.values():  # reads a weight that belongs to the layer inside it
        deepspeed.zero.register_external_parameter(layer, layer.base.weight)
        if layer.base.bias is not None:
            deepspeed.zero.register_external_parameter(layer, layer.base.bias)
    model.place(device)
    return shards


def _initialize(model: AdaptedModel, optimizer: torch.optim.Optimizer, zero_stage: int) -> Any:
    size = sum(flat.numel() for flat in model.flats)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": size,  # the default allocates 2 GB in every backward
            "allgather_bucket_size": size,
        },
    }
    engine, *_ = import_deepspeed().initialize(
        model=model,
        optimizer=optimizer,
        model_parameters=list(model.flats),
        config=config,
        dist_init_required=False,
    )
    return engine
