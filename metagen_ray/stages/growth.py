"""What a study takes over from smaller ones: rows of answers, grades of the judge. Owns what fits; asks nothing.

A block of eval domains that has grown has a new key, so its shards are missing although most of their cells are in the
pool. An answer shard takes the rows of the same ask of the block's first domains, whose key the plan can tell; each row
stays with the cell it was drawn for. A judge shard takes the grades that shards with its label hold. What is damaged or
does not fit is left, and its cells are asked as if it were not there.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from metagen_ray.errors import StoreError
from metagen_ray.stages.plan import Ask, JudgeShard, Plan

Row = dict[str, Any]
Asked = tuple[str, int]  # eval domain, question number
Pair = tuple[str, int, str]  # eval domain, question number, answer
Note = dict[str, Any]  # what the record of the new shard says of the takeover


def answered_domains(plan: Plan, asks: Iterable[Ask], present: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Key of a missing shard -> how many first domains of its block a shard in the pool holds, where one does.

    `present`: keys in the pool by stage.
    """
    found = {ask.key: _longest_beginning(plan, ask, present.get(ask.stage, ())) for ask in asks}
    return {key: count for key, count in found.items() if count}


def _longest_beginning(plan: Plan, ask: Ask, present: Collection[str]) -> int:
    longest = len(plan.context.blocks[ask.block].domains) - 1 if present else 0
    return next((n for n in range(longest, 0, -1) if plan.beginning(ask, n).key in present), 0)


def take_answers(plan: Plan, ask: Ask, count: int) -> tuple[dict[Asked, list[Row]], Note]:
    """The rows of the shard that asked the first `count` domains of the block, if any; none where it is damaged."""
    if not count:
        return {}, {}
    smaller = plan.beginning(ask, count)
    try:
        table, _ = plan.context.store.read_shard(smaller.stage, smaller.key)
    except StoreError as error:
        return {}, {"key": smaller.key, "refused": _first_clause(error)}
    rows: dict[Asked, list[Row]] = {}
    for row in table.to_pylist():
        asked = row["eval_domain"], row["question"]
        rows.setdefault(asked, []).append({**row, "train_domain": ask.train_domain})
    draws = {asked: [(row["draw"], row["sample"]) for row in group] for asked, group in rows.items()}
    if draws != _expected_draws(plan, ask, count):
        return {}, {"key": smaller.key, "refused": "its rows are of other domains"}
    return rows, {"key": smaller.key, "domains": count, "rows": table.num_rows}


def _expected_draws(plan: Plan, ask: Ask, count: int) -> dict[Asked, list[tuple[int, int]]]:
    """(draw, sample) of every row that an ask of the block's first `count` domains holds, by what is asked."""
    first = {d.id for d in plan.context.blocks[ask.block].domains[:count]}
    return {
        (domain.id, question): [(draw, sample) for sample in range(ask.samples)]
        for domain, question, draw, _ in plan.prompts(ask)
        if domain.id in first
    }


def graded_elsewhere(shards: Iterable[JudgeShard], marked: Mapping[str, Collection[str]]) -> dict[str, tuple[str, ...]]:
    """Key of a missing judge shard -> keys of others under its label, where there are any.

    `marked`: keys by label, as `Store.marked("judge")` lists them.
    """
    found = {s.key: sorted({*marked.get(s.label, ())} - {s.key, *s.known}) for s in shards}
    return {key: tuple(others) for key, others in found.items() if others}


def take_grades(
    plan: Plan, shard: JudgeShard, others: Sequence[str], pairs: Iterable[Pair]
) -> tuple[dict[Pair, Row], Note]:
    """The grades of `pairs` that other shards of the same judge hold for the same questions; damaged ones are left."""
    wanted = set(pairs)
    taken: dict[Pair, Row] = {}
    note: Note = {}
    for key in others:
        if not wanted:
            break
        try:
            rows = {_pair(row): row for row in _fitting_grades(plan, shard, key) if _pair(row) in wanted}
        except StoreError as error:
            note[key] = {"refused": _first_clause(error)}
            continue
        wanted -= rows.keys()
        taken |= rows
        note[key] = {"rows": len(rows)}
    return taken, note


def _fitting_grades(plan: Plan, shard: JudgeShard, key: str) -> list[Row]:
    """Rows of a judge shard that are of the same judge and of the same questions, by what its sealed record says."""
    table, record = plan.context.store.read_shard("judge", key)
    if record.get("label") != shard.label:  # a mark is an empty file, which proves nothing
        return []
    questions = plan.question_digests(shard.block)
    same = {domain for domain, digest in record["questions"].items() if questions.get(domain) == digest}
    return [row for row in table.to_pylist() if row["eval_domain"] in same]


def _first_clause(error: StoreError) -> str:
    return str(error).partition(";")[0]


def _pair(row: Row) -> Pair:
    return row["eval_domain"], row["question"], row["answer"]
