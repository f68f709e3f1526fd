"""The cost of a study's units on N GPUs of one type: rows by stage, wall time, money. Prints nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from metagen_ray.cost.bank import bank_memory, choose_bank
from metagen_ray.cost.makespan import Bound, bound_of, simulate
from metagen_ray.cost.roofline import Machine, Phase
from metagen_ray.cost.units import SFT, STAGES, Unit, bank_phases, banks_of, tasks_of
from metagen_ray.cost.work import Work


@dataclass(frozen=True, slots=True)
class StageCost:
    """One line: what a stage reads, writes and moves, and the hours of one GPU that it takes."""

    stage: str
    units: int
    work: Work
    flops: float
    bytes: float
    limit_h: float
    hours: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """All stages, and the schedule on `gpus`. `bound` holds for the stated utilisation, as `wall_s` does."""

    stages: tuple[StageCost, ...]
    gpus: int
    bank: int
    wall_s: float
    bound: Bound

    @property
    def total(self) -> StageCost:
        """The sum of all stages."""
        rows = self.stages
        return StageCost(
            "total",
            sum(r.units for r in rows),
            sum((r.work for r in rows), Work()),
            sum(r.flops for r in rows),
            sum(r.bytes for r in rows),
            sum(r.limit_h for r in rows),
            sum(r.hours for r in rows),
        )


def estimate(units: Sequence[Unit], machine: Machine, gpus: int) -> Estimate:
    """Cost and schedule of the units. InputError where the base does not fit on one GPU."""
    machine.check()
    bank = study_bank(units, machine, gpus)
    tasks = tasks_of(units, machine, gpus, bank)
    rows = tuple(_stage_cost(stage, units, machine, gpus, bank) for stage in STAGES)
    return Estimate(rows, gpus, bank, simulate(tasks, gpus), bound_of(tasks, gpus))


def study_bank(units: Sequence[Unit], machine: Machine, lanes: int) -> int:
    """The bank size that the largest step and adapter of the fine-tunes allow."""
    jobs = [unit for unit in units if unit.stage == SFT]
    if not jobs:
        return 1
    memory = bank_memory(
        machine.decoder,
        machine.gpu.memory_bytes,
        max(job.work.trained.tokens / job.work.updates for job in jobs),
        max(job.work.trained.logits / job.work.updates for job in jobs),
        max(job.adapter for job in jobs),
    )
    return choose_bank(len(jobs), lanes, memory)


def _stage_cost(stage: str, units: Sequence[Unit], machine: Machine, lanes: int, bank: int) -> StageCost:
    mine = [unit for unit in units if unit.stage == stage]
    phases = _phases(stage, mine, machine, lanes, bank)
    return StageCost(
        stage,
        len(mine),
        sum((unit.work for unit in mine), Work()),
        sum(p.flops for p in phases),
        sum(p.bytes for p in phases),
        machine.limit_s(phases) / 3600,
        machine.seconds(phases) / 3600,
    )


def _phases(stage: str, units: Sequence[Unit], machine: Machine, lanes: int, bank: int) -> list[Phase]:
    if stage == SFT:
        return [p for banks in banks_of(units, lanes, bank) for b in banks for p in bank_phases(machine, b)]
    return [p for unit in units for p in machine.phases(unit.work, unit.adapter)]
