"""The report of a study: figures, tables, pictures and answers, written beside the run. Reads what is committed."""

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from metagen_ray.analysis import Analysis
from metagen_ray.analysis.tables import EVALUATION
from metagen_ray.progress import say
from metagen_ray.stages.analyse import analyse_forms, judge_agreement
from metagen_ray.stages.draws import seeded
from metagen_ray.stages.grid import Answer, read_answers
from metagen_ray.stages.plan import META, TRUTH, UNTRAINED, Plan
from metagen_ray.view.files import quadrants_csv, to_csv
from metagen_ray.view.report import write_report
from metagen_ray.view.table import terminal_table
from metagen_ray.view.tables import Example, ReportTables, ShownAnswer

EXAMPLES_PER_QUADRANT = 6


def write_study_report(
    plan: Plan,
    versions: Mapping[str, str],
    seconds: Mapping[str, Mapping[str, float]],
    given_up: Sequence[str] = (),
) -> Analysis:
    """Analyse the committed answers, write `report/` of the run and print its table."""
    answers = read_answers(plan)
    analysis, exact = analyse_forms(plan, answers)
    tables = _tables(plan, answers, analysis, exact, versions, seconds, given_up)
    files = write_report(tables)
    files["answers.parquet"] = _parquet(plan, answers)
    if tables.exact is not None:
        files["exact/quadrants.csv"] = quadrants_csv(tables.exact.quadrants)
        rows = ((name, r, count) for name, (r, count) in tables.judge_agreement.items())
        files["exact/judge.csv"] = to_csv(("predictor", "pearson", "answers"), rows)
    folder = f"studies/{plan.study.run_name()}/report"
    for name, content in files.items():
        plan.context.store.write_doc(f"{folder}/{name}", content)
    say(terminal_table(analysis))
    say(f"report: {plan.context.store.root}/{folder}/index.html")
    return analysis


def _tables(
    plan: Plan,
    answers: Sequence[Answer],
    analysis: Analysis,
    exact: Analysis | None,
    versions: Mapping[str, str],
    seconds: Mapping[str, Mapping[str, float]],
    given_up: Sequence[str],
) -> ReportTables:
    study, suite = plan.study, plan.context.suite
    return ReportTables(
        run=study.run_name(),
        fingerprint=study.fingerprint(),
        seed=study.seed,
        suite=suite.name,
        model=study.model,
        study_yaml=study.to_yaml(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        analysis=analysis,
        families={d.id: d.family for d in plan.context.active},
        examples=_examples(plan, answers),
        versions=versions,
        seconds={name: figures["seconds"] for name, figures in seconds.items()},
        notes=[_judged_note(answers), *(f"given up, its cells are missing here: {line}" for line in given_up)],
        exact=exact,
        judge_agreement=judge_agreement(answers) if exact else {},
    )


def _judged_note(answers: Sequence[Answer]) -> str:
    distinct = len({(a.eval_domain, a.question, a.answer) for a in answers})
    return f"{len(answers)} answers were sampled; {distinct} distinct ones were judged, the rest was spared."


def _examples(plan: Plan, answers: Sequence[Answer]) -> list[Example]:
    """A few questions of seeded random cells of each evaluation quadrant, with the answers of truth and predictors."""
    meta = set(plan.context.halves.meta_train)
    chosen = {key: quadrant for quadrant in EVALUATION for key in _chosen(plan, quadrant, meta)}
    shown: dict[tuple[str, str, int], dict[str, list[ShownAnswer]]] = {key: {} for key in chosen}
    for a in answers:
        key = (a.train_domain, a.eval_domain, a.question)
        if key in shown and a.predictor in (TRUTH, META, UNTRAINED):
            group = shown[key].setdefault(a.predictor, [])
            if len(group) < plan.study.samples:
                group.append(ShownAnswer(a.answer, a.score))
    domains = plan.context.domains
    return [
        Example(domains[i].title, domains[j].title, chosen[i, j, q], plan.context.questions(domains[j])[q], found)
        for (i, j, q), found in shown.items()
    ]


def _chosen(plan: Plan, quadrant: str, meta: set[str]) -> list[tuple[str, str, int]]:
    train_half, eval_half = (half == "train" for half in quadrant.split("-"))
    ids = [d.id for d in plan.context.active]
    rows = [i for i in ids if (i in meta) == train_half]
    columns = [j for j in ids if (j in meta) == eval_half]
    rng = seeded("examples", plan.study.seed, quadrant)
    picks = ((rng.choice(rows), rng.choice(columns), rng.randrange(plan.study.questions)) for _ in range(50))
    return list(dict.fromkeys(p for p in picks if p[0] != p[1]))[:EXAMPLES_PER_QUADRANT]


def _parquet(plan: Plan, answers: Sequence[Answer]) -> bytes:
    """Every answer with its question and scores, for other programs."""
    texts = {(d.id, n): q for d in plan.context.suite.domains for n, q in enumerate(plan.context.questions(d))}
    columns = {name: [getattr(a, name) for a in answers] for name in Answer.__dataclass_fields__}
    columns["question_text"] = [texts[a.eval_domain, a.question] for a in answers]
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()
