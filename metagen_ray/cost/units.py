"""The units of a study (a fine-tune, an answer shard, a judge shard, meta-SFT), and the tasks they make for N GPUs.

Owns how units become tasks: fine-tunes in banks bound to lanes, everything else startable when what it reads is
committed, in the driver's order of stages. Every GPU trains or serves, whatever is ready; a lane's banks come first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metagen_ray.cost.bank import cut_banks, deal
from metagen_ray.cost.makespan import Task
from metagen_ray.cost.roofline import SEQUENCES, Machine, Phase
from metagen_ray.cost.work import Work

SFT, META = "object_sft", "meta_sft"
# In the order of the driver, under its names.
STAGES = (
    SFT,
    "ground_truth",
    "judge truth",
    "predict untrained",
    "judge untrained",
    META,
    "predict meta",
    "judge meta",
)


@dataclass(frozen=True, slots=True)
class Unit:
    """One committed piece of a stage. `adapter` are the parameters it is done with beside the base, `after` the keys of
    what it reads, `parts` the pieces that several GPUs can share.
    """

    stage: str
    key: str
    work: Work
    adapter: int = 0
    after: tuple[str, ...] = ()
    parts: int = 1


def banks_of(units: Sequence[Unit], lanes: int, size: int) -> list[list[list[Unit]]]:
    """Fine-tunes by lane and bank: dealt by tokens, the most expensive first."""
    jobs = [unit for unit in units if unit.stage == SFT]
    shares = deal([job.work.trained.tokens for job in jobs], lanes)
    return [[[jobs[j] for j in bank] for bank in cut_banks(share, size)] for share in shares]


def bank_phases(machine: Machine, bank: Sequence[Unit]) -> list[Phase]:
    """What one bank asks of its GPU."""
    return machine.bank_phases([unit.work for unit in bank], max(unit.adapter for unit in bank))


def tasks_of(units: Sequence[Unit], machine: Machine, gpus: int, bank: int) -> list[Task]:
    """The units as tasks for `gpus` workers, with banks of at most `bank` adapters on as many lanes."""
    tasks, done_by = [], {}
    for lane, banks in enumerate(banks_of(units, gpus, bank)):
        for number, members in enumerate(banks):
            name = f"lane {lane} bank {number}"
            tasks.append(Task(name, machine.seconds(bank_phases(machine, members)), worker=lane))
            done_by |= {unit.key: name for unit in members}
    for unit in units:
        if unit.stage != SFT:
            tasks += _shard_tasks(unit, machine, gpus, done_by)
    return tasks


def judge_parts(work: Work) -> int:
    """Pieces of a judge shard that several replicas share, eight full batches of prompts each."""
    return max(1, math.ceil(work.read.logits / (8 * SEQUENCES)))


def _shard_tasks(unit: Unit, machine: Machine, gpus: int, done_by: Mapping[str, str]) -> list[Task]:
    seconds, order = machine.seconds(machine.phases(unit.work, unit.adapter)), STAGES.index(unit.stage)
    after = tuple(dict.fromkeys(done_by.get(key, key) for key in unit.after))
    if unit.stage == META:
        return [Task(unit.key, seconds / gpus, after, order, everyone=True)]
    if unit.parts == 1:
        return [Task(unit.key, seconds, after, order)]
    parts = [Task(f"{unit.key} part {n}", seconds / unit.parts, after, order) for n in range(unit.parts)]
    return [*parts, Task(unit.key, 0.0, tuple(part.name for part in parts), order)]
