"""What one more domain costs a finished study: `python -m benchmarks.grow` from the root of the repository.

The pocket study of D domains is answered and judged, then the one of D + 1, by the stages' own workers. The model is
scripted and counts its prompts, since what is measured is which prompts are asked. A cell is one model asked the
questions of one eval domain; the grid alone would have 2 D + 1 new ones. Two sizes: the last block of eval domains
grows (99 -> 100, the hard case), or a new one opens (80 -> 81).
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.judge import read_pairs
from metagen_ray.stages.plan import TRUTH, Ask, Plan
from metagen_ray.study import load_study
from tests.stages.counting import CountingModel, answer_and_judge, serving

SIZES = (99, 80)
Cell = tuple[str, str, str]  # predictor, train domain, eval domain


@dataclass(frozen=True)
class Growth:
    """What the second study asked, in cells by predictor, and what its judge graded."""

    domains: int  # of the first study
    asked: dict[str, float]
    new: dict[str, int]  # cells by predictor that the first study did not have
    judged_pairs: int  # (question, answer)
    new_pairs: int
    repeated_prompts: int  # asked by both studies, or twice
    changed_cells: int  # whose answers are not those of the first study


def main() -> None:
    """Print the rows, and the counts beside them."""
    for growth in map(measure, SIZES):
        print(json.dumps(row(growth)))
        for predictor, asked in growth.asked.items():
            print(f"  {predictor}: {asked:g} cells asked, {growth.new[predictor]} are new")
        print(f"  judge: {growth.judged_pairs} pairs graded, {growth.new_pairs} are new")


def rows() -> list[dict[str, Any]]:
    """One row a size."""
    return [row(measure(domains)) for domains in SIZES]


def row(growth: Growth) -> dict[str, Any]:
    """`ours`: cells of the grid that were asked; `peer`: those of the whole grid; `ratio`: asked / (2 D + 1).

    `parity`: cells that changed and prompts that were asked again, 0 when all is well. The count has no spread.
    """
    d, asked = growth.domains, growth.asked[TRUTH]
    ratio = round(asked / (2 * d + 1), 4)
    return {
        "row": 10,
        "size": f"{d} -> {d + 1} domains",
        "what": "cells asked when a study grows by one domain; the ratio is to the 2 D + 1 new ones, at most the aim",
        "against": "the whole grid again",
        "unit": "cells",
        "aim": 1.1,
        "ours": asked,
        "peer": (d + 1) ** 2,
        "ratio": ratio,
        "low": ratio,
        "high": ratio,
        "parity": growth.changed_cells + growth.repeated_prompts,
        "peak_share": None,
    }


def measure(domains: int) -> Growth:
    """Do a study of so many domains, then the one with one more; both in a store of their own."""
    with tempfile.TemporaryDirectory(prefix="metagen-grow-") as folder:
        first, second = (_plan(n, Path(folder) / "store") for n in (domains, domains + 1))
        model = CountingModel(first.context.tokenizer)
        with serving(model, Path(folder), first.context.base.name) as app:
            answer_and_judge(first, app)
            before, pairs = model.asked.copy(), _pairs(first)
            model.clear()
            answer_and_judge(second, app)
        old, new = _cells(first), _cells(second)
        return Growth(
            domains,
            _cells_asked(second, model, first.context.base.name),
            dict(Counter(cell[0] for cell in new if cell not in old)),
            model.graded.total() // 2,  # score and coherence
            len(_pairs(second) - pairs),
            (model.asked & before).total() + model.asked.total() - len(model.asked),
            sum(new[cell] != answers for cell, answers in old.items()),
        )


def _cells_asked(plan: Plan, model: CountingModel, base: str) -> dict[str, float]:
    """Prompts that reached the server, in cells, by predictor: a prompt is found by its model and its tokens."""
    predictors = {}
    for ask in _asks(plan):
        name = base if ask.adapter is None else f"{base}:{ask.adapter}"
        predictors.update({(name, tuple(tokens)): ask.predictor for *_, tokens in plan.prompts(ask)})
    counts = Counter(predictors[prompt] for prompt in model.asked.elements())
    return {predictor: count / plan.study.questions for predictor, count in counts.items()}


def _plan(domains: int, store: Path) -> Plan:
    return Plan(StudyContext(load_study("pocket_full", [f"domains={domains}", f"store={store}"])))


def _asks(plan: Plan) -> Iterable[Ask]:
    return (*plan.truth, *plan.untrained)


def _pairs(plan: Plan) -> set[tuple[str, int, str]]:
    return {pair for a in _asks(plan) for pair in read_pairs(plan.context.store, a.stage, a.key)}


def _cells(plan: Plan) -> dict[Cell, Counter[tuple]]:
    """Answers by cell."""
    found: dict[Cell, Counter[tuple]] = {}
    for ask in _asks(plan):
        table, _ = plan.context.store.read_shard(ask.stage, ask.key)
        for r in table.to_pylist():
            cell = found.setdefault((ask.predictor, ask.train_domain, r["eval_domain"]), Counter())
            cell[r["question"], r["draw"], r["sample"], r["answer"], tuple(r["tokens"])] += 1
    return found


if __name__ == "__main__":
    main()
