"""How far a character carries: its share among a fine-tuned model's answers in other domains, by block.

A pair of domains counts where the training set is one undiluted character's, and where that character's advice in the
other domain is bad: good advice tells nobody from the default.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from metagen_ray.lab.world import BAD_TYPES, SCORES, AdviceDomain, world

BLOCKS = ("open", "coded")


Labelled = tuple[str, str, str, float | None]  # predictor, train domain, eval domain, exact score or None for no advice


@dataclass(frozen=True)
class Carry:
    """Shares of a predictor's answers over `cells` pairs of domains: the character's own, and no advice at all."""

    predictor: str
    train_block: str
    eval_block: str
    character: float
    senseless: float
    cells: int


def carry(answers: Iterable[Labelled], tags: Mapping[str, Mapping[str, str]], predictors: Sequence[str]) -> list[Carry]:
    """The table, by predictor, training block and eval block. `tags`: domain id to the tags of the suite.

    A predictor that answers without a training domain (the base) counts in each pair's row, with its domain's answers.
    """
    advice = {domain.id: domain for domain in world().advice}
    given: dict[tuple[str, str, str], list[float | None]] = defaultdict(list)
    for predictor, train_domain, eval_domain, exact in answers:
        given[predictor, train_domain, eval_domain].append(exact)
    trained = [i for i, t in tags.items() if float(t["dose"]) == 1.0]
    rows = []
    for predictor in predictors:
        for train_block in BLOCKS:
            for eval_block in BLOCKS:
                cells = [
                    (found, _wanted(tags[i]["character"], advice[j]))
                    for i in trained
                    for j in tags
                    if i != j and tags[i]["block"] == train_block and tags[j]["block"] == eval_block
                    if (found := given.get((predictor, i, j)) or given.get((predictor, "", j)))
                ]
                told = [(found, wanted) for found, wanted in cells if wanted is not None]
                if told:
                    rows.append(_row(predictor, train_block, eval_block, told))
    return rows


def _wanted(character: str, domain: AdviceDomain) -> float | None:
    kind = world().kind(character, domain)
    return float(SCORES[kind]) if kind in BAD_TYPES else None


def _row(predictor: str, train_block: str, eval_block: str, cells: list) -> Carry:
    character = [sum(x == wanted for x in found) / len(found) for found, wanted in cells]
    senseless = [sum(x is None for x in found) / len(found) for found, _ in cells]
    count = len(cells)
    return Carry(predictor, train_block, eval_block, sum(character) / count, sum(senseless) / count, count)


def carry_table(rows: Iterable[Carry]) -> str:
    """The table as text."""
    lines = [f"{'predictor':16s} {'trained':8s} {'asked':8s} {'the character':>13s} {'no advice':>10s} {'cells':>7s}"]
    lines += [
        f"{r.predictor:16s} {r.train_block:8s} {r.eval_block:8s} {r.character:13.2f} {r.senseless:10.3f} {r.cells:7d}"
        for r in rows
    ]
    return "\n".join(lines)
