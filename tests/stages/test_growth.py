"""Growing a study: what a smaller one holds is taken over, row for row; nothing is asked or graded twice, or mixed."""

import dataclasses
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from metagen_ray.cli import main
from metagen_ray.records import ANSWERS
from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.growth import answered_domains, graded_elsewhere, take_grades
from metagen_ray.stages.judge import read_scores
from metagen_ray.stages.plan import Ask, Plan
from metagen_ray.stages.status import Status
from metagen_ray.study import load_study
from tests.stages.counting import CountingModel, answer_and_judge, ask_all, serving
from tests.stages.filled import fill

SMALL, LARGE = "domains=6", "domains=8"  # blocks of 4: the second grows from 2 domains to 4
SHORT = ("questions=2", "predict.samples=2", "context.k=2", "context.draws=2")


@dataclass(frozen=True)
class Grown:
    """A study of 6 domains, its store as it was then, and the study of 8 that grew from it, with what that asked."""

    small: Plan
    large: Plan
    store_before: Path
    model: CountingModel
    base_name: str


@pytest.fixture(scope="module")
def grown(base_dir, tmp_path_factory) -> Grown:
    folder = tmp_path_factory.mktemp("grown")

    def plan(domains: str) -> Plan:
        overrides = (domains, "block_domains=4", f"model={base_dir}", f"store={folder / 'store'}", *SHORT)
        return Plan(StudyContext(load_study("pocket", overrides)))

    small, large = plan(SMALL), plan(LARGE)
    model, name = CountingModel(small.context.tokenizer), small.context.base.name
    with serving(model, folder, name) as app:
        answer_and_judge(small, app)
        shutil.copytree(folder / "store", folder / "before")
        model.clear()
        answer_and_judge(large, app)
    return Grown(small, large, folder / "before", model, name)


@pytest.fixture
def small(grown, plan_of, tmp_path) -> Plan:
    """The small study, done, in a store of its own."""
    shutil.copytree(grown.store_before, tmp_path / "store")
    return plan_of(SMALL, *SHORT)


@pytest.fixture
def large(small, plan_of) -> Plan:
    """The large study over it, not begun."""
    return plan_of(LARGE, *SHORT)


@pytest.fixture
def model(grown) -> CountingModel:
    return CountingModel(grown.small.context.tokenizer, seed=1)


@pytest.fixture
def app(model, grown, tmp_path):
    with serving(model, tmp_path, grown.base_name) as address:
        yield address


def rows(plan: Plan, ask: Ask) -> list[dict]:
    return plan.context.store.read_shard(ask.stage, ask.key)[0].to_pylist()


def cells(plan: Plan, asks) -> dict[tuple, list[dict]]:
    """Rows of asks by predictor and cell."""
    found: dict[tuple, list[dict]] = {}
    for ask in asks:
        for row in rows(plan, ask):
            found.setdefault((ask.predictor, ask.train_domain, row["eval_domain"]), []).append(row)
    return found


def last_block(plan: Plan, asks) -> list[Ask]:
    return [a for a in asks if a.block == len(plan.context.blocks) - 1]


def spoil(plan: Plan, stage: str, key: str) -> None:
    path = Path(plan.study.store) / "pool" / stage / key
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_growth_keeps_every_row_of_the_smaller_study(grown):
    for asks, of_base in (("truth", 0), ("untrained", 1)):
        before = cells(grown.small, getattr(grown.small, asks))
        after = cells(grown.large, getattr(grown.large, asks))
        assert (len(before), len(after)) == (36 + 6 * of_base, 64 + 8 * of_base)
        assert {cell: after[cell] for cell in before} == before


def test_growth_rows_lie_as_if_all_had_been_asked(grown):
    for ask in (*grown.large.truth, *grown.large.untrained):
        found = rows(grown.large, ask)
        expected = [(d.id, q, draw, n) for d, q, draw, _ in grown.large.prompts(ask) for n in range(ask.samples)]
        assert [(r["eval_domain"], r["question"], r["draw"], r["sample"]) for r in found] == expected
        assert {r["train_domain"] for r in found} == {ask.train_domain}


def test_growth_asks_the_new_cells_and_nothing_else(grown):
    def prompts(plan: Plan) -> Counter:
        named = ((a, grown.base_name + (f":{a.adapter}" if a.adapter else "")) for a in (*plan.truth, *plan.untrained))
        return Counter((name, tuple(tokens)) for ask, name in named for *_, tokens in plan.prompts(ask))

    assert grown.model.asked == prompts(grown.large) - prompts(grown.small)
    assert grown.model.asked.total() == ((64 - 36) + (64 - 36) + 2) * 2  # truth, untrained, base; two questions a cell


def test_growth_records_say_what_was_taken_and_count_tokens_of_what_was_asked(grown):
    small, large = grown.small, grown.large
    ask, whole = last_block(large, large.truth)[0], large.truth[0]
    record = large.context.store.record(ask.stage, ask.key)
    assert record["taken"] == {"key": last_block(small, small.truth)[0].key, "domains": 2, "rows": 2 * 2 * 2}
    new = {d.id for d in large.context.suite.domains[6:]}
    assert record["prompt_tokens"] == sum(len(t) for d, _, _, t in large.prompts(ask) if d.id in new)
    assert large.context.store.record(whole.stage, whole.key)["taken"] == {}


def test_growth_takes_from_the_largest_of_several_studies(grown, plan_of):
    for domains in (5, 6):
        fill(plan_of(f"domains={domains}"))
    larger = plan_of(LARGE)
    found = answered_domains(larger, larger.truth, Status(larger).present)
    old = {d.id for d in larger.context.suite.domains[:6]}
    assert found == {a.key: 2 for a in last_block(larger, larger.truth) if a.train_domain in old}


def test_growth_over_a_damaged_shard_asks_all_of_it(small, large, app, model):
    spoilt = last_block(small, small.truth)[3]
    spoil(small, spoilt.stage, spoilt.key)
    ask_all(large, large.truth, app)
    assert model.asked.total() == (64 - 36 + 2) * 2
    ask = next(a for a in last_block(large, large.truth) if a.train_domain == spoilt.train_domain)
    record = large.context.store.record(ask.stage, ask.key)
    assert record["taken"]["key"] == spoilt.key and "damaged" in record["taken"]["refused"]
    assert len(rows(large, ask)) == 4 * 2 * 2
    assert not Status(large).missing("ground_truth", large.truth)


def test_growth_over_renamed_domains_asks_all(plan_of, app, model):
    """A key knows prompts, not names; rows under other names are not this study's."""
    large = plan_of(LARGE, *SHORT)
    for ask in (a for a in large.truth if a.block == 1):
        first = large.beginning(ask, 2)
        names = {d.id: f"{d.id}-old" for d in large.context.blocks[1].domains[:2]}
        found = [
            {"train_domain": ask.train_domain, "eval_domain": names[d.id], "question": q, "draw": draw, "sample": n}
            | {"answer": "a", "tokens": [1], "finish": "stop"}
            for d, q, draw, _ in large.prompts(ask)
            for n in range(ask.samples)
            if d.id in names
        ]
        large.context.store.put_shard(first.stage, first.key, pa.Table.from_pylist(found, schema=ANSWERS), {})
    assert len(answered_domains(large, large.truth, Status(large).present)) == 8
    ask_all(large, large.truth, app)
    assert model.asked.total() == 8 * 8 * 2
    assert {r["eval_domain"] for a in large.truth for r in rows(large, a)} == set(large.context.domains)


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ("samples=3", {"ground_truth", "predict"}),
        ("temperature=0.5", {"ground_truth", "predict"}),
        ("max_answer_tokens=9", {"ground_truth", "predict"}),
        ("questions=3", {"ground_truth", "predict"}),
        ("object_sft.lr=0.002", {"ground_truth"}),
        ("truth_seed=1", {"ground_truth"}),
        ("context.k=4", {"predict"}),
        ("context.draws=3", {"predict"}),
    ],
)
def test_growth_takes_nothing_of_other_settings(plan_of, change, stages):
    small, large = plan_of(SMALL, "predict.samples=3"), plan_of(LARGE, "predict.samples=3", change)
    if change == "samples=3":  # predictions have samples of their own
        large = plan_of(LARGE, "predict.samples=4", change)
    fill(small)
    same = plan_of(LARGE, "predict.samples=3")
    for stage in stages:
        assert answered_domains(same, asks_of(same, stage), Status(same).present)
        assert not answered_domains(large, asks_of(large, stage), Status(large).present)


def asks_of(plan: Plan, stage: str) -> list[Ask]:
    """Shards with examples in the prompt, or of an adapter: what the base says alone depends on fewer settings."""
    return [a for a in (*plan.truth, *plan.untrained) if a.stage == stage and (a.shown or a.adapter)]


def test_growth_of_the_meta_model_takes_nothing_over(plan_of):
    """It has learnt from another grid, so it is another model."""
    fill(plan_of(SMALL))
    large = plan_of(LARGE)
    assert not answered_domains(large, large.predictions, Status(large).present)


def test_growth_and_a_study_from_nothing_have_the_same_keys(grown, plan_of, app):
    alone = plan_of(LARGE, *SHORT)
    answer_and_judge(alone, app)
    for stage, asks in (("ground_truth", alone.truth), ("predict", alone.untrained)):
        assert alone.context.store.keys(stage) == {a.key for a in asks} <= grown.large.context.store.keys(stage)
    assert alone.context.store.keys("judge") <= grown.large.context.store.keys("judge")


def grades(plan: Plan) -> dict:
    shards = (s for part in ("truth", "untrained") for s in plan.judged[part])
    return {pair: grade for s in shards for pair, grade in read_scores(plan.context.store, s.key)}


def pairs(plan: Plan) -> set[tuple]:
    return {
        (r["eval_domain"], r["question"], r["answer"]) for a in (*plan.truth, *plan.untrained) for r in rows(plan, a)
    }


def test_growth_grades_every_new_pair_once_and_no_old_one(grown):
    before, after = grades(grown.small), grades(grown.large)
    assert set(before) == pairs(grown.small) and set(after) == pairs(grown.large)
    assert {pair: after[pair] for pair in before} == before
    assert len(before) > 50 and len(after) > len(before)
    assert grown.model.graded.total() == 2 * (len(after) - len(before))  # score and coherence
    assert set(grown.model.graded.values()) == {1}


def test_growth_over_a_damaged_judge_shard_grades_its_pairs_again(small, large, app, model):
    before, spoilt = grades(small), small.judged["truth"][0].key
    lost = {pair for pair, _ in read_scores(small.context.store, spoilt)}
    spoil(small, "judge", spoilt)
    answer_and_judge(large, app)
    assert set(grades(large)) == pairs(large)
    assert model.graded.total() == 2 * len((pairs(large) - set(before)) | lost)


def test_growth_by_a_second_seed_grades_what_is_new(small, plan_of, app, model):
    """Every judge shard of the truth has a new key then, since it reads more answers."""
    more, before = plan_of(SMALL, *SHORT, "second_seed_domains=3"), grades(small)
    answer_and_judge(more, app)
    assert not {s.key for s in small.judged["truth"]} & {s.key for s in more.judged["truth"]}
    assert set(grades(more)) == pairs(more) and pairs(more) > set(before)
    assert model.graded.total() == 2 * len(pairs(more) - set(before))


def changed(plan: Plan, **scorer: str) -> Plan:
    suite = plan.context.suite
    plan.context.suite = dataclasses.replace(suite, scorer=dataclasses.replace(suite.scorer, **scorer))
    return plan


@pytest.mark.parametrize("change", ["mass", "rubric", "coherence_rubric", "questions", "base"])
def test_growth_takes_no_grades_of_another_judge(large, plan_of, change, base_dir, tmp_path):
    other = plan_of(LARGE, *SHORT)
    if change == "mass":
        other = plan_of(LARGE, *SHORT, "judge.min_mass=0.3")
    elif change == "questions":
        other = plan_of(LARGE, *SHORT, "questions=3")
    elif change == "base":
        copy = shutil.copytree(base_dir, tmp_path / "base")
        (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
        other = plan_of(LARGE, *SHORT, f"model={copy}")
    else:
        other = changed(other, **{change: "Rate joy, 0 to 100."})
    marked = large.context.store.marked("judge")
    assert len(graded_elsewhere(large.judged["truth"], marked)) == 2
    assert not graded_elsewhere(other.judged["truth"], marked)


def test_growth_a_mark_alone_proves_nothing(small, plan_of, app, model):
    """Shards of this judge are marked as if they were another's: their records say what they are."""
    other = plan_of(SMALL, *SHORT, "judge.min_mass=0.3")
    for ours, theirs in zip(small.judged["truth"], other.judged["truth"], strict=True):
        small.context.store.mark("judge", theirs.label, ours.key)
    answer_and_judge(other, app, ["truth"])
    graded = {pair for s in other.judged["truth"] for pair, _ in read_scores(other.context.store, s.key)}
    assert model.graded.total() == 2 * len(graded)


def test_growth_takes_no_grades_of_a_domain_whose_questions_changed(small, plan_of):
    other, (first, second, *rest) = plan_of(SMALL, *SHORT), small.context.suite.domains
    domains = (first, dataclasses.replace(second, questions=second.questions[::-1]), *rest)
    other.context.suite = dataclasses.replace(small.context.suite, domains=domains)
    here, there = other.judged["truth"][0], small.judged["truth"][0]
    assert here.label == there.label and here.key != there.key
    known = [pair for pair, _ in read_scores(small.context.store, there.key)]
    taken, _ = take_grades(other, here, [there.key], known)
    assert set(taken) == {pair for pair in known if pair[0] != second.id} and 0 < len(taken) < len(known)


def test_plan_tells_what_is_taken_over(grown, large, app, model, capsys, base_dir):
    lines = {line.stage: line for line in Status(large).lines()}
    assert lines["ground_truth"].taken == 6 * 2 and lines["predict untrained"].taken == 6 * 2 + 2
    assert lines["judge truth"].taken == 4 and lines["predict meta"].taken == 0
    settings = (*SHORT, LARGE, "block_domains=4", f"model={base_dir}", f"store={large.study.store}")
    assert main(["plan", "pocket", *(a for s in settings for a in ("--set", s))]) == 0
    out = capsys.readouterr().out
    assert "waits for object_sft; 12 cells are there" in out and "grades of 4 shards are there" in out
    ask_all(large, large.truth, app)
    limit = large.study.samples * large.study.max_answer_tokens
    assert lines["ground_truth"].tokens == sum(n * (len(prompt) + limit) for (_, prompt), n in model.asked.items())
