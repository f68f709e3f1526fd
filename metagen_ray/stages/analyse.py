"""The figures of a study: arrays in, tables out. Reads committed answers; computes through metagen_ray.analysis."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from metagen_ray.analysis import Analysis, Options, analyse
from metagen_ray.stages.grid import Answer, Arrays, arrays, mechanism
from metagen_ray.stages.plan import Plan
from metagen_ray.suites.suite import Domain


@dataclass(frozen=True, eq=False)
class _Task:
    """All that an analysis needs, in arrays: it travels to another process."""

    found: Arrays
    options: Options
    seed: int
    blocks: Mapping[str, np.ndarray]

    def run(self) -> Analysis:
        """Measure every predictor."""
        rng = np.random.default_rng([self.seed, 7])
        return analyse(self.found.grid, self.found.predictions, self.options, rng, self.blocks)


def analyse_study(plan: Plan, answers: Sequence[Answer], exact: bool = False) -> Analysis:
    """Measure every predictor. `exact` takes the labels the world knows instead of the judge's scores."""
    return _task(plan, answers, exact).run()


def analyse_forms(plan: Plan, answers: Sequence[Answer]) -> tuple[Analysis, Analysis | None]:
    """By the judge's scores, and by exact labels where the world knows them: two processes side by side."""
    if plan.context.suite.exact_score is None:
        return analyse_study(plan, answers), None
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        exact = beside.submit(_task(plan, answers, exact=True).run)
        return analyse_study(plan, answers), exact.result()


def _task(plan: Plan, answers: Sequence[Answer], exact: bool) -> _Task:
    found = arrays(plan, answers, exact)
    settings = plan.study.analysis
    options = Options(resamples=settings.resamples, deals=settings.deals, level=settings.level)
    everyone = Arrays(found.grid, {**found.predictions, **_mechanisms(plan, found)})
    return _Task(everyone, options, plan.study.seed, _blocks(plan, found))


def judge_agreement(answers: Sequence[Answer]) -> dict[str, tuple[float, int]]:
    """Pearson of judged against exact scores by predictor, with the number of answers that have both."""
    figures = {}
    for name in dict.fromkeys(a.predictor for a in answers):
        pairs = np.array(
            [(a.score, a.exact) for a in answers if a.predictor == name and a.score is not None and a.exact is not None]
        )
        if len(pairs) > 2 and pairs.std(axis=0).all():
            figures[name] = (float(np.corrcoef(pairs.T)[0, 1]), len(pairs))
    return figures


def _mechanisms(plan: Plan, found: Arrays) -> dict:
    """What a table of the world's own mechanism predicts; only for suites that tell it."""
    domains = plan.context.domains
    if not all("character" in d.tags for d in domains.values()):
        return {}

    def coarse(i: str, j: str) -> tuple:
        a, b = domains[i], domains[j]
        return (
            ("cab", a.tags["character"], a.tags["block"], b.tags["block"]),
            ("ab", a.tags["block"], b.tags["block"]),
            (),
        )

    def topical(i: str, j: str) -> tuple:
        a, b = domains[i], domains[j]
        fine = ("cfab", a.tags["character"], b.family, a.tags["block"], b.tags["block"])
        return (fine, ("cf", a.tags["character"], b.family), *coarse(i, j))

    return {
        "Mechanism": mechanism(plan, found.grid, coarse),
        "Mechanism/topical": mechanism(plan, found.grid, topical),
    }


def _blocks(plan: Plan, found: Arrays) -> dict[str, np.ndarray]:
    """Cells by the blocks of their two domains, where domains have blocks."""
    domains = [plan.context.domains[i] for i in found.grid.train_ids]
    names = sorted({_block(d) for d in domains} - {""})
    kind = np.array([_block(d) for d in domains])
    return {f"{a} -> {b}": (kind == a)[:, None] & (kind == b)[None] for a in names for b in names}


def _block(domain: Domain) -> str:
    return domain.tags.get("block", "")
