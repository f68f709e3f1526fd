"""The report as one HTML file that asks nothing of any network. Owns the page; computes and draws nothing.

Every text goes through Jinja's autoescape; the page carries a policy that forbids scripts and foreign content, so
even a hostile answer is shown as the text it is.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from metagen_ray.analysis.tables import FORMS, ContrastRow, QuadrantRow
from metagen_ray.plots.picture import Picture
from metagen_ray.view.files import to_csv
from metagen_ray.view.names import FLOORS, META, QUADRANT_TITLES, SHOWN_QUADRANTS, TRUTH, UNTRAINED, in_order
from metagen_ray.view.table import Line, claim_sentence, pivot
from metagen_ray.view.tables import Example, ReportTables

SECTIONS = (
    ("rmse", "RMSE, as sampled", 1),
    ("rmse_expectation", "RMSE without the predictor's own sampling noise", 1),
    ("floor_ratio", "RMSE over the floor (the larger of GT-same and GT-seed)", 2),
    ("pearson", "Pearson", 2),
    ("spearman", "Spearman", 2),
    ("pearson_column", "Pearson, column-centred (eval domains' means removed)", 2),
    ("pearson_row", "Pearson, row-centred (training domains' means removed)", 2),
    ("pearson_double", "Pearson, double-centred (interactions alone)", 2),
    ("wasserstein", "Wasserstein-1 between the distributions of propensities", 1),
    ("rate_rmse", "RMSE of the share of answers past the threshold", 1),
)
ANSWER_COLUMNS = ((TRUTH, "truth: the fine-tuned model"), (META, META), (UNTRAINED, UNTRAINED))
BLOCK_PREDICTORS = 6


@dataclass(frozen=True)
class Section:
    """One metric as a table of the page."""

    title: str
    digits: int
    lines: list[Line]


@dataclass(frozen=True)
class Embedded:
    """A picture with its image and its numbers in base64."""

    name: str
    title: str
    caption: str
    png: str
    csv: str


def page(tables: ReportTables, pictures: Sequence[Picture]) -> bytes:
    """The page with everything in it."""
    analysis = tables.analysis
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        _asset("page.html")
    )
    html = template.render(
        tables=tables,
        style=Markup(_asset("style.css")),  # ours, no answer is in it
        facts=_facts(tables),
        quadrants=[(q, QUADRANT_TITLES[q]) for q in SHOWN_QUADRANTS],
        floors=FLOORS,
        claims=[claim_sentence(claim) for claim in analysis.claims],
        sections=_sections(analysis.quadrants),
        reasons=_reasons(analysis.quadrants),
        clean=_one(analysis.clean, "RMSE, as sampled, without marked cells"),
        exact=_one(tables.exact.quadrants, "RMSE, as sampled, exact labels") if tables.exact else None,
        pictures=[_embedded(picture) for picture in pictures],
        blocks=_blocks(tables),
        answer_groups=_answer_groups(tables.examples),
        answer_columns=ANSWER_COLUMNS,
        contrasts=[(form, _contrasts(analysis.contrasts, form)) for form in FORMS],
        notes=[*tables.notes, *analysis.notes],
        small_tables=_small_tables(tables),
        number=_number,
        p_value=_p_value,
    )
    return html.encode()


def _asset(name: str) -> str:
    return (resources.files("metagen_ray.view") / "assets" / name).read_text(encoding="utf-8")


def _facts(tables: ReportTables) -> list[tuple[str, object]]:
    halves = {(r.train_domain, r.train_half) for r in tables.analysis.cells if r.predictor == TRUTH}
    trained = sum(half == "train" for _, half in halves)
    return [
        ("suite", tables.suite),
        ("model", tables.model),
        ("training domains", f"{trained} meta-train, {len(halves) - trained} meta-eval"),
        ("seed", tables.seed),
        ("fingerprint", tables.fingerprint),
        ("written", tables.created),
    ]


def _sections(rows: Sequence[QuadrantRow]) -> list[Section]:
    """The RMSE table, present even without a value, then each other metric that has one."""
    sections = [Section(title, digits, pivot(rows, metric)) for metric, title, digits in SECTIONS]
    return [sections[0], *(section for section in sections[1:] if section.lines)]


def _reasons(rows: Sequence[QuadrantRow]) -> dict[str, list[str]]:
    """Why values or intervals of the shown metrics are missing, and whose."""
    shown = {metric for metric, _, _ in SECTIONS}
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.reason and row.metric in shown and row.quadrant in SHOWN_QUADRANTS:
            found.setdefault(row.reason, []).append(row.predictor)
    return {reason: in_order(whose) for reason, whose in found.items()}


def _one(rows: Sequence[QuadrantRow], title: str) -> Section | None:
    lines = pivot(rows, "rmse")
    return Section(title, 1, lines) if lines else None


def _embedded(picture: Picture) -> Embedded:
    numbers = base64.b64encode(to_csv(picture.columns, picture.rows)).decode()
    image = base64.b64encode(picture.png).decode()
    return Embedded(picture.name, picture.title, picture.caption, image, numbers)


def _blocks(tables: ReportTables) -> list[tuple[str, str, list[float | None]]]:
    """RMSE by block of the predictors a reader compares first; floors and redraws are left to blocks.csv."""
    rows = [r for r in tables.analysis.blocks if r.metric == "rmse"]
    value = {(r.block, r.predictor, r.quadrant): r.value for r in rows}
    named = [p for p in in_order(r.predictor for r in rows) if p not in FLOORS][:BLOCK_PREDICTORS]
    return [
        (block, predictor, [value.get((block, predictor, q)) for q in SHOWN_QUADRANTS])
        for block in dict.fromkeys(r.block for r in rows)
        for predictor in named
    ]


def _contrasts(rows: Sequence[ContrastRow], form: str) -> list[ContrastRow]:
    """One form's contrasts by quadrant, rivals in the order of all tables."""
    order = in_order(r.against for r in rows)
    return sorted(
        (r for r in rows if r.form == form),
        key=lambda r: (SHOWN_QUADRANTS.index(r.quadrant), order.index(r.against)),
    )


def _answer_groups(examples: Sequence[Example]) -> list[tuple[str, str, list[Example]]]:
    order = [*SHOWN_QUADRANTS, "diagonal"]
    groups = [(q, QUADRANT_TITLES[q], [e for e in examples if e.quadrant == q]) for q in order]
    return [group for group in groups if group[2]]


def _small_tables(tables: ReportTables) -> list[tuple[str, str, dict[str, str]]]:
    seconds = {name: f"{value:,.1f}" for name, value in tables.seconds.items()}
    found = [("Seconds by stage", " s", seconds), ("Versions", "", dict(tables.versions))]
    return [table for table in found if table[2]]


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _p_value(value: float | None) -> str:
    if value is None:
        return "n/a"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
