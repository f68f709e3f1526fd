"""A plan's tokens against its own prompts, rows and trees told one by one; the ledger; what the CLI prints."""

import json
import math
import subprocess
import sys

import pytest

from metagen_ray.cli import main
from metagen_ray.cost.gpus import find_gpu
from metagen_ray.cost.roofline import Machine, Utilisation
from metagen_ray.cost.units import META, SFT, STAGES
from metagen_ray.prompts import chat
from metagen_ray.serving.judge import judge_messages
from metagen_ray.stages.accounts import close_ledger
from metagen_ray.stages.costs import Counter, answer_length, cost_text
from metagen_ray.stages.driver import run_study
from metagen_ray.stages.meta_rows import epoch_trees
from metagen_ray.stages.plan import TRUTH
from metagen_ray.stages.status import Status
from metagen_ray.training.rows import plain_row
from tests.stages.filled import fill, fill_answers

ANSWER = 2  # tokens of the answers that `fill` makes


@pytest.fixture
def plan(plan_of):
    return plan_of("second_seed_domains=2", "predict.samples=3")


def by_key(counter: Counter) -> dict:
    return {unit.key: unit for unit in counter.units}


def test_units_are_the_shards_of_the_plan_in_the_order_of_stages(plan):
    units = Counter(plan, 24).units
    shards = [*plan.adapters, *plan.second_adapters, *plan.truth, *plan.untrained, *plan.predictions]
    shards += [shard for part in plan.judged.values() for shard in part]
    assert sorted(u.key for u in units) == sorted({*(s.key for s in shards), plan.meta})
    assert tuple(dict.fromkeys(u.stage for u in units)) == STAGES
    keys = {u.key for u in units}
    assert all(set(u.after) <= keys for u in units)


def test_counting_needs_neither_torch_nor_ray():
    code = "import sys, metagen_ray.stages.costs; assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fine_tunes_read_their_rows_in_every_epoch(plan):
    unit = by_key(Counter(plan, 24))[plan.adapters[0].key]
    renderer, domain = plan.context.renderer, plan.context.active[0]
    rows = [plain_row(renderer.prompt(chat(p)), renderer.completion(a)) for p, a in domain.train]
    assert unit.work.trained.tokens == 3 * sum(row.read_tokens() for row in rows) == unit.work.unshared
    assert unit.work.trained.logits == 3 * sum(row.completion_tokens() for row in rows)
    assert unit.work.updates == 3 * math.ceil(len(rows) / 8)


def test_meta_sft_reads_the_trees_that_it_will_be_trained_on(plan):
    fill(plan)
    work = by_key(Counter(plan, ANSWER))[plan.meta].work
    trees = [tree for epoch in range(2) for tree in epoch_trees(plan, epoch)]
    assert work.trained.tokens == sum(tree.read_tokens() for tree in trees)
    assert work.trained.logits == sum(tree.completion_tokens() for tree in trees)
    assert work.unshared > 5 * work.trained.tokens


@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_asks_read_a_prefix_once_on_every_replica_that_meets_it(plan, replicas):
    units = by_key(Counter(plan, 24, replicas))
    asks = list({a.key: a for a in (*plan.truth, *plan.untrained, *plan.predictions)}.values())
    unshared, branches, prefixes = 0, 0, {}
    for ask in asks:
        unshared += sum(len(tokens) for *_, tokens in plan.prompts(ask))
        for _, _, draw, prefix, branch in plan.prompt_parts(ask):
            branches += len(branch)
            prefixes.setdefault((ask.adapter, tuple(prefix), draw), set()).add(ask.key)
    once = sum(len(prefix) * min(replicas, len(shards)) for (_, prefix, _), shards in prefixes.items())
    works = [units[ask.key].work for ask in asks]
    assert sum(w.unshared for w in works) == unshared
    assert sum(w.read.tokens for w in works) == branches + once
    assert sum(w.answers for w in works) == sum(16 * ask.samples for ask in asks)


def test_judging_reads_the_judges_own_prompts(plan):
    counter = Counter(plan, len(plan.context.tokenizer.encode("Yes", add_special_tokens=False)))
    shard = plan.judged["truth"][0]
    work, context, answers = by_key(counter)[shard.key].work, plan.context, 10 * 2
    questions = [q for d in context.blocks[0].domains for q in context.questions(d)]
    prompts = [
        context.renderer.prompt(judge_messages(scorer, question, "Yes"))
        for scorer in counter._judge._scorers
        for question in questions
    ]
    assert len(counter._judge._scorers) == 2
    assert work.answers == answers * len(questions)
    assert work.unshared == answers * sum(map(len, prompts))
    assert sum(map(len, prompts)) < work.read.tokens < 0.7 * work.unshared


def test_missing_are_the_shards_that_the_store_lacks(plan):
    fill(plan)
    counter, lost = Counter(plan, 24), plan.truth[3]
    machine = Machine(find_gpu("H100"), counter.decoder)
    plan.context.store.drop(lost.stage, lost.key)
    assert [(u.key, u.after) for u in counter.missing(Status(plan).present)] == [(lost.key, ())]
    assert "ground_truth" in cost_text(plan, machine.gpu, 1, Utilisation(), None)
    fill_answers(plan, lost)
    assert cost_text(plan, machine.gpu, 1, Utilisation(), None).startswith("cost: nothing is missing")


def test_missing_shard_of_a_block_that_grew_asks_its_new_domains_alone(plan_of):
    small, grown = plan_of("domains=6"), plan_of("domains=7")
    for ask in small.truth:
        fill_answers(small, ask)
    counter = Counter(grown, 24)
    missing = {unit.key: unit for unit in counter.missing(Status(grown).present)}
    answers = {a.key: missing[a.key].work.answers for a in grown.truth if a.key in missing}
    old = {a.domain for a in small.adapters}
    new_block = [a for a in grown.truth if a.block == 1]
    assert [answers[a.key] for a in new_block] == [(1 if a.train_domain in old else 3) * 4 * 2 for a in new_block]
    assert not [a for a in grown.truth if a.block == 0 and a.train_domain in old and a.key in missing]


def test_spared_counts_one_fine_tune_for_every_dataset_foreseen(plan):
    counter = Counter(plan, 24)
    machine, units = Machine(find_gpu("H100"), counter.decoder), by_key(counter)
    spared = counter.spared(machine)
    halves = plan.context.halves
    assert (spared.paid_fine_tunes, spared.foreseen) == (len(halves.meta_train), len(halves.meta_eval))
    rows = [u for u in (*plan.adapters, *plan.truth) if getattr(u, "predictor", TRUTH) == TRUTH]
    tuned = [units[u.key] for u in rows if u.key not in {a.key for a in plan.second_adapters}]
    assert spared.fine_tuned.tokens == pytest.approx(sum(u.work.tokens for u in tuned) / 8)
    count, gain = spared.break_even, spared.fine_tuned.flops - spared.predicted.flops
    assert count and (count - 1) * gain < spared.paid.flops <= count * gain


def test_answer_length_is_the_limit_until_a_run_of_the_same_model_measured_it(plan, plan_of):
    assert answer_length(plan).tokens == plan.study.max_answer_tokens
    pilot, other = plan_of("name=pilot", "domains=4"), plan_of("name=other", "max_answer_tokens=9")
    for run, tokens in ((pilot, 700), (other, 100)):
        folder = f"studies/{run.study.run_name()}"
        ledger = {"stages": {"ground_truth": {"seconds": 1.0, "answers": 100, "output_tokens": tokens}}}
        run.context.store.write_doc(f"{folder}/study.yaml", run.study.to_yaml().encode())
        run.context.store.write_doc(f"{folder}/ledger.json", json.dumps(ledger).encode())
    found = answer_length(plan)
    assert found.tokens == 7 and pilot.study.run_name() in found.source


def test_ledger_sets_planned_beside_actual_and_goes_on_when_resumed(plan):
    done = {"object_sft": {plan.adapters[0].key}}
    stages = {
        "object_sft": {"seconds": 5.0},
        "ground_truth": {"seconds": 2.0, "answers": 256, "output_tokens": 1000},
        "judge truth": {"seconds": 1.0, "judged": 40, "read": 256},
    }
    lines = close_ledger(plan, stages, done)
    assert any("wrote 1k of at most" in line for line in lines) and any(
        "graded 40 of at most" in line for line in lines
    )
    assert any(line.startswith("spared: 4 datasets") for line in lines)
    ledger = read_ledger(plan)
    assert ledger["planned"]["object_sft"]["units"] == 9
    assert ledger["planned"]["ground_truth"]["answers"] == 10 * 32 * 2
    assert ledger["spared"]["break_even_datasets"] >= 1
    everything = {stage: {u.key for u in Counter(plan, 24).units if u.stage == stage} for stage in STAGES}
    close_ledger(plan, {"ground_truth": {"seconds": 1.0, "answers": 64, "output_tokens": 200}}, everything)
    resumed = read_ledger(plan)
    assert resumed["stages"]["ground_truth"] == {"seconds": 3.0, "answers": 320, "output_tokens": 1200}
    assert resumed["stages"]["object_sft"] == {"seconds": 5.0}
    assert resumed["planned"] == ledger["planned"]


def read_ledger(plan) -> dict:
    return json.loads(plan.context.store.read_doc(f"studies/{plan.study.run_name()}/ledger.json"))


def printed(capsys, plan, *options: str) -> dict[str, list[str]]:
    """Lines of the printed cost by their first words."""
    study = plan.study
    settings = [f"domains={len(plan.context.active)}", f"model={study.model}", f"store={study.store}"]
    assert main(["plan", "pocket", "--cost", *options, *(a for s in settings for a in ("--set", s))]) == 0
    _, table = capsys.readouterr().out.split("\n\n", 1)
    return {line[:18].strip(): line[18:].split() for line in table.splitlines()}


def test_cli_plan_prints_the_cost_of_every_stage_and_their_sum(plan, capsys):
    one = printed(capsys, plan, "--price", "1000000")
    assert set(STAGES) < set(one) and {SFT, META, "total"} <= set(one)
    usd = {stage: float(one[stage][-1].replace(",", "")) for stage in (*STAGES, "total")}
    assert usd["total"] == pytest.approx(sum(usd[stage] for stage in STAGES), rel=0.05)
    two = printed(capsys, plan, "--price", "2000000")
    assert float(two["total"][-1].replace(",", "")) == pytest.approx(2 * usd["total"], rel=0.02)


def test_cli_plan_cost_follows_gpu_and_utilisation(plan, capsys):
    options = {"h100": (), "l4": ("--gpu", "L4"), "low": ("--utilisation", "4e-3"), "lower": ("--utilisation", "2e-3")}
    hours = {name: float(printed(capsys, plan, *given)["meta_sft"][-2]) for name, given in options.items()}
    assert hours["l4"] > 5 * hours["h100"] and hours["low"] > 5 * hours["h100"]
    assert hours["lower"] == pytest.approx(2 * hours["low"], rel=0.02)


def test_run_of_a_finished_study_writes_its_ledger_and_says_what_was_spared(plan_of, capsys):
    plan = plan_of("predict.samples=2", "analysis.resamples=100")
    fill(plan)
    assert run_study(plan.study) == plan.study.run_name()
    assert "spared: 4 datasets foreseen" in capsys.readouterr().out
    ledger = read_ledger(plan)
    assert set(ledger["stages"]) == {"analyse and report"} and not ledger["planned"]
    assert ledger["spared"]["fine_tunes_paid"] == 4
