"""The central table: predictors down, quadrants across. As data for the page, as plain text for a terminal."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from metagen_ray.analysis import Analysis
from metagen_ray.analysis.tables import SAMPLED, ClaimRow, QuadrantRow
from metagen_ray.view.names import FLOORS, QUADRANT_TITLES, SHOWN_QUADRANTS, in_order

NAME_WIDTH, CELL_WIDTH = 22, 20
SECTIONS = (
    ("rmse", "RMSE, points of 0-100, as sampled [interval]", 1),
    ("rmse_expectation", "RMSE without the predictor's own sampling noise", 1),
    ("pearson_column", "Pearson, column-centred: does it know what the training did?", 2),
)


@dataclass(frozen=True)
class Line:
    """One predictor across the shown quadrants; None where the analysis has no row for it."""

    predictor: str
    oracle: bool
    rows: tuple[QuadrantRow | None, ...]


def pivot(quadrants: Sequence[QuadrantRow], metric: str) -> list[Line]:
    """Rows of one metric as lines, in the order of all tables; predictors without any value are left out."""
    table = {(r.predictor, r.quadrant): r for r in quadrants if r.metric == metric}
    lines = []
    for predictor in in_order(p for p, _ in table):
        rows = tuple(table.get((predictor, quadrant)) for quadrant in SHOWN_QUADRANTS)
        if any(row is not None and row.value is not None for row in rows):
            lines.append(Line(predictor, any(row is not None and row.oracle for row in rows), rows))
    return lines


def show(row: QuadrantRow | None, digits: int) -> str:
    """`12.7 [11.2, 14.1]`, without brackets where there is no interval, `n/a` where there is no value."""
    if row is None or row.value is None:
        return "n/a"
    value = f"{row.value:.{digits}f}"
    if row.low is None or row.high is None:
        return value
    return f"{value} [{row.low:.{digits}f}, {row.high:.{digits}f}]"


def claim_sentence(claim: ClaimRow) -> str:
    """What the claim says and whether it holds."""
    said = f"{claim.subject} beats {', '.join(claim.against)} in all evaluation quadrants ({claim.form}): "
    if claim.holds is None or claim.p is None:
        return f"{said}n/a, {claim.reason}"
    return f"{said}{'yes' if claim.holds else 'no'} (p = {claim.p:.3g}; hardest: {claim.hardest})"


def terminal_table(analysis: Analysis) -> str:
    """The table of a study in plain text, at most 102 columns wide, for a terminal or a log."""
    blocks = [_heading(analysis.quadrants)]
    for metric, title, digits in SECTIONS:
        lines = pivot(analysis.quadrants, metric)
        if lines:
            blocks.append("\n".join([title, *(_text(line, digits) for line in lines)]))
    foot = [claim_sentence(claim) for claim in analysis.claims if claim.form == SAMPLED]
    foot.append("* reads answers of the fine-tuned models that a user would not have; floors: GT, GT-same, GT-seed")
    foot += [f"no interval or value: {reason}" for reason in _reasons(analysis.quadrants)]
    return "\n\n".join([*blocks, "\n".join(_wrap(line) for line in foot)])


def _heading(quadrants: Sequence[QuadrantRow]) -> str:
    cells = {r.quadrant: r.cells for r in quadrants if r.metric == "rmse" and r.predictor == "GT"}
    short = [QUADRANT_TITLES[q].split(" (")[0] for q in SHOWN_QUADRANTS]
    names = [f"{q} ({cells.get(q, 0):,})" for q in SHOWN_QUADRANTS]
    return "\n".join(_columns("predictor" if row is short else "(cells)", row) for row in (short, names))


def _text(line: Line, digits: int) -> str:
    starred = line.predictor + (" *" if line.oracle and line.predictor not in FLOORS else "")
    return _columns(starred, [show(row, digits) for row in line.rows])


def _columns(name: str, cells: Sequence[str]) -> str:
    return (f"{name:<{NAME_WIDTH}}" + "".join(f"{cell:<{CELL_WIDTH}}" for cell in cells)).rstrip()


def _reasons(quadrants: Sequence[QuadrantRow], most: int = 3) -> list[str]:
    """Why MetaSFT's figures are incomplete; the reasons of all others are in the page."""
    wanted = {metric for metric, _, _ in SECTIONS}
    found = [r.reason for r in quadrants if r.predictor == "MetaSFT" and r.metric in wanted and r.reason]
    return list(dict.fromkeys(found))[:most]


def _wrap(text: str, width: int = NAME_WIDTH + 4 * CELL_WIDTH) -> str:
    return textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False)
