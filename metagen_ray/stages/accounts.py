"""The ledger of a run: what was planned beside what it took, and what predictions have spared. Writes ledger.json.

Planned is what was missing when the run began, answers at their limit. A run that is resumed adds to its ledger.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from metagen_ray.cost.gpus import GPUS
from metagen_ray.cost.roofline import Machine
from metagen_ray.cost.spared import Spared
from metagen_ray.cost.table import short, spared_lines
from metagen_ray.cost.units import Unit
from metagen_ray.errors import InputError, StoreError
from metagen_ray.stages.costs import Counter, still_missing
from metagen_ray.stages.plan import Plan

Figures = dict[str, dict[str, float]]


def close_ledger(plan: Plan, stages: Figures, present: Iterable[str]) -> list[str]:
    """Write the ledger of a run that began with the keys `present` in the store; its lines for a person."""
    path = f"studies/{plan.study.run_name()}/ledger.json"
    planned, spared = _planned(plan, present)
    earlier = _read(plan, path)
    ledger = {
        "stages": _sum(earlier.get("stages", {}), stages),
        "planned": _sum(earlier.get("planned", {}), planned),
        "spared": _spared_figures(spared) if spared else {},
    }
    plan.context.store.write_doc(path, json.dumps(ledger, indent=1).encode())
    lines = [_line(name, figures, planned.get(name, {})) for name, figures in stages.items()]
    return [*lines, *(spared_lines(spared) if spared else [])]


def _planned(plan: Plan, present: Iterable[str]) -> tuple[Figures, Spared | None]:
    """Planned figures by stage; none for a base whose dimensions are not known, which must not fail a finished run."""
    try:
        counter = Counter(plan, plan.study.max_answer_tokens, plan.study.resources.replicas)
        machine = Machine(GPUS[0], counter.decoder)  # FLOPs are the same on all
        missing = still_missing(counter.units, present)
        return _by_stage(missing, machine), counter.spared(machine)
    except InputError:
        return {}, None


def _by_stage(units: Iterable[Unit], machine: Machine) -> Figures:
    found: Figures = {}
    for unit in units:
        figures = {
            "units": 1,
            "tokens": unit.work.tokens,
            "prompt_tokens": unit.work.unshared,
            "output_tokens": unit.work.sampled,
            "answers": unit.work.answers,
            "flops": sum(p.flops for p in machine.phases(unit.work, unit.adapter)),
        }
        found = _sum(found, {unit.stage: figures})
    return found


def _sum(one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]) -> Figures:
    """Figures of both, added where a stage has one of the same name in both."""
    return {
        stage: {
            name: one.get(stage, {}).get(name, 0) + other.get(stage, {}).get(name, 0)
            for name in dict.fromkeys((*one.get(stage, {}), *other.get(stage, {})))
        }
        for stage in dict.fromkeys((*one, *other))
    }


def _read(plan: Plan, path: str) -> dict[str, Any]:
    try:
        return json.loads(plan.context.store.read_doc(path))
    except (StoreError, ValueError):
        return {}


def _spared_figures(spared: Spared) -> dict[str, Any]:
    return {
        "fine_tunes_paid": spared.paid_fine_tunes,
        "datasets_foreseen": spared.foreseen,
        "per_fine_tune_paid": spared.per_prediction,
        "paid_tokens": spared.paid.tokens,
        "paid_flops": spared.paid.flops,
        "predicted_tokens": spared.predicted.tokens,
        "predicted_flops": spared.predicted.flops,
        "fine_tuned_tokens": spared.fine_tuned.tokens,
        "fine_tuned_flops": spared.fine_tuned.flops,
        "break_even_datasets": spared.break_even,
    }


def _line(stage: str, figures: Mapping[str, float], planned: Mapping[str, float]) -> str:
    """Seconds of a stage, and its figures beside what was planned."""
    line = f"  {stage:20s} {figures['seconds']:8.1f} s"
    if not planned:
        return line
    line += f"   planned {short(planned['flops'])} FLOPs, {short(planned['tokens'])} tokens"
    if "output_tokens" in figures:
        line += f"; wrote {short(figures['output_tokens'])} of at most {short(planned['output_tokens'])}"
    if "judged" in figures:
        line += f"; graded {short(figures['judged'])} of at most {short(planned['answers'])}, the rest was equal"
    return line
