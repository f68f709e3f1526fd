"""A finished study without its models: status, report, damage and repair, through the CLI."""

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from metagen_ray.analysis.tables import EVALUATION
from metagen_ray.cli import main
from metagen_ray.errors import StoreError
from metagen_ray.stages.plan import TRUTH
from metagen_ray.stages.report import write_study_report
from metagen_ray.stages.status import Status, drop_stale, repair
from tests.stages.filled import fill, fill_answers, fill_scores


@pytest.fixture
def filled(plan_of):
    plan = plan_of("analysis.resamples=100", "predict.samples=2", "second_seed_domains=2")
    fill(plan)
    plan.context.store.write_doc(f"studies/{plan.study.run_name()}/study.yaml", plan.study.to_yaml().encode())
    return plan


def report_folder(plan) -> Path:
    return Path(plan.study.store) / "studies" / plan.study.run_name() / "report"


def shard_file(plan, stage: str, key: str) -> Path:
    found = [p for p in (Path(plan.study.store) / "pool" / stage).rglob(f"{key}*") if p.is_file()]
    assert len(found) == 1
    return found[0]


def test_status_complete_then_report_written(filled, capsys):
    assert Status(filled).complete()
    assert main(["status", filled.study.run_name(), "--store", filled.study.store]) == 0
    assert main(["report", filled.study.run_name(), "--store", filled.study.store]) == 0
    assert "MetaSFT" in capsys.readouterr().out
    with (report_folder(filled) / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    truth = [r for r in rows if r["predictor"] == TRUTH]
    assert len(truth) == 64 and all(int(r["answers"]) == 8 for r in truth)


def test_lab_carry_prints_a_row_of_the_truth_by_pair_of_blocks(filled, capsys):
    assert main(["lab", "carry", filled.study.run_name(), "--store", filled.study.store]) == 0
    out = capsys.readouterr().out
    assert out.startswith("predictor") and sum(line.startswith("GT ") for line in out.splitlines()) >= 2


def test_report_propensities_equal_plain_means_of_the_answers(filled):
    write_study_report(filled, {}, {})
    answers = pq.read_table(report_folder(filled) / "answers.parquet").to_pylist()
    with (report_folder(filled) / "cells.csv").open() as file:
        cells = {(r["predictor"], r["train_domain"], r["eval_domain"]): r["propensity"] for r in csv.DictReader(file)}
    for predictor in (TRUTH, "MetaSFT", "UntrainedICL", "Scrambled"):
        for i in filled.context.domains:
            for j in filled.context.domains:
                own = [
                    a["exact"]
                    for a in answers
                    if (a["predictor"], a["train_domain"], a["eval_domain"]) == (predictor, i, j)
                ]
                assert float(cells[predictor, i, j]) == pytest.approx(sum(own) / len(own), abs=1e-3)


def test_report_covers_every_evaluation_quadrant(filled):
    analysis = write_study_report(filled, {}, {})
    rows = {(r.predictor, r.quadrant) for r in analysis.quadrants if r.metric == "rmse" and r.value is not None}
    for name in ("MetaSFT", "UntrainedICL", "Base", "Scrambled", "GT-EvalOnly/loo", "GT-TrainOnly/loo", "Mechanism"):
        assert all((name, quadrant) in rows for quadrant in EVALUATION), name


def test_report_a_judge_that_gives_the_labels_agrees_with_them_wholly(filled):
    write_study_report(filled, {}, {})
    with (report_folder(filled) / "exact" / "judge.csv").open() as file:
        rows = {r["predictor"]: r for r in csv.DictReader(file)}
    assert int(rows[TRUTH]["answers"]) == 64 * 8
    assert all(float(rows[name]["pearson"]) == pytest.approx(1) for name in (TRUTH, "MetaSFT", "Base"))
    judged, exact = (report_folder(filled) / name for name in ("quadrants.csv", "exact/quadrants.csv"))
    assert judged.read_text() == exact.read_text()


def test_status_missing_shard_is_told_and_report_refuses(filled, capsys):
    filled.context.store.drop("ground_truth", filled.truth[3].key)
    assert main(["report", filled.study.run_name(), "--store", filled.study.store]) == 2
    assert "1 shards of ground_truth are missing" in capsys.readouterr().err


def test_report_damaged_shard_is_named(filled):
    path = shard_file(filled, "ground_truth", filled.truth[3].key)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(StoreError, match=filled.truth[3].key[:12]):
        write_study_report(filled, {}, {})


def test_repair_drops_the_damaged_shard_and_what_read_it(filled):
    ask = filled.truth[3]
    path = shard_file(filled, "ground_truth", ask.key)
    path.write_bytes(path.read_bytes()[:-20])
    dropped = repair(filled)
    readers = [s for shards in filled.judged.values() for s in shards if s.block == ask.block]
    assert len(dropped) == 1 + len(readers)
    status = Status(filled)
    assert [a.key for a in status.missing("ground_truth", filled.truth)] == [ask.key]
    fill_answers(filled, ask)
    for shard in readers:
        fill_scores(filled, shard)
    assert Status(filled).complete()
    assert repair(filled) == []


def test_grades_of_answers_that_are_gone_are_dropped_with_all_that_read_them(filled):
    """The answers come out otherwise when they are asked anew, and the report would look for grades in vain."""
    ask = filled.truth[3]
    assert drop_stale(filled, Status(filled).present) == []
    filled.context.store.drop("ground_truth", ask.key)
    present = Status(filled).present
    readers = [s for shards in filled.judged.values() for s in shards if s.block == ask.block]
    assert len(drop_stale(filled, present)) == len(readers) == 3
    assert present == Status(filled).present and not present["judge"] & {s.key for s in readers}


def test_grades_of_answers_that_came_after_the_listing_are_kept(filled):
    present = Status(filled).present
    present["ground_truth"].discard(filled.truth[3].key)
    assert drop_stale(filled, present) == [] and Status(filled).complete()


def test_status_unknown_run_lists_the_known(filled, capsys):
    assert main(["status", "nonesuch", "--store", filled.study.store]) == 2
    assert filled.study.run_name() in capsys.readouterr().err


def test_combine_pools_seeds_and_counts_wins(plan_of, capsys):
    plans = [plan_of("analysis.resamples=100", "predict.samples=2", f"seed={s}") for s in (3, 4)]
    for plan in plans:
        fill(plan)
        plan.context.store.write_doc(f"studies/{plan.study.run_name()}/study.yaml", plan.study.to_yaml().encode())
    names = [plan.study.run_name() for plan in plans]
    assert main(["combine", *names, "--store", plans[0].study.store]) == 0
    assert "of 2" in capsys.readouterr().out
    assert main(["combine", names[0], names[0], "--store", plans[0].study.store]) == 2
    assert main(["combine", names[0], "--store", plans[0].study.store]) == 2
