"""Several finished runs of one world, taken together: what holds over split seeds. Reads committed answers only."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from metagen_ray.analysis import Options, Pooled, combine
from metagen_ray.errors import InputError
from metagen_ray.progress import say
from metagen_ray.stages.analyse import analyse_study
from metagen_ray.stages.grid import read_answers
from metagen_ray.stages.plan import Plan
from metagen_ray.view.pooled import pooled_table, rows_csv


def combine_runs(plans: Sequence[Plan]) -> Pooled:
    """Pool runs that differ in `seed` alone, write the rows under `studies/combined-...` and print their table.

    Both by the judge's scores and, where the world knows them, by exact labels (files `exact_...`).
    """
    _check(plans)
    store, folder = plans[0].context.store, f"studies/{_name(plans)}"
    pooled = {}
    for label, exact in _forms(plans):
        analyses = [analyse_study(plan, read_answers(plan), exact) for plan in plans]
        settings = plans[0].study.analysis
        options = Options(resamples=settings.resamples, deals=settings.deals, level=settings.level)
        pooled[label] = combine(analyses, options, np.random.default_rng(7))
        store.write_doc(f"{folder}/{label}quadrants.csv", rows_csv(pooled[label].quadrants))
        store.write_doc(f"{folder}/{label}contrasts.csv", rows_csv(pooled[label].contrasts))
        store.write_doc(f"{folder}/{label}blocks.csv", rows_csv(pooled[label].blocks))
        store.write_doc(f"{folder}/{label}claims.csv", rows_csv(pooled[label].claims))
    runs = [plan.study.run_name() for plan in plans]
    store.write_doc(f"{folder}/runs.json", json.dumps(runs, indent=1).encode())
    say(pooled_table(pooled[""]))
    say(f"combined: {store.root}/{folder}")
    return pooled[""]


def _forms(plans: Sequence[Plan]) -> list[tuple[str, bool]]:
    known = plans[0].context.suite.exact_score is not None
    return [("", False), ("exact_", True)] if known else [("", False)]


def _check(plans: Sequence[Plan]) -> None:
    if len(plans) < 2:
        raise InputError(f"{len(plans)} runs to combine; give at least two that differ in `seed`")
    for plan in plans[1:]:
        same = plan.study.model_copy(update={"seed": plans[0].study.seed, "name": plans[0].study.name})
        if same.fingerprint() != plans[0].study.fingerprint():
            raise InputError(
                f"runs {plans[0].study.run_name()} and {plan.study.run_name()} differ in more than `seed`; "
                "combine runs of one study"
            )
    seeds = [plan.study.seed for plan in plans]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"two of the runs have the same seed ({sorted(seeds)}); give each run once")


def _name(plans: Sequence[Plan]) -> str:
    runs = "|".join(sorted(plan.study.run_name() for plan in plans))
    return f"combined-{hashlib.sha256(runs.encode()).hexdigest()[:12]}"
