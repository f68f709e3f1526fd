"""Several splits together, as text and CSV. Owns the table's layout; computes nothing."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from metagen_ray.analysis import Pooled
from metagen_ray.analysis.tables import EVAL_EVAL, EXPECTATION, SAMPLED
from metagen_ray.view.files import to_csv
from metagen_ray.view.names import SHOWN_QUADRANTS, in_order

METRICS = (
    ("rmse", "RMSE, as sampled [interval]", 1),
    ("rmse_expectation", "RMSE, expectation", 1),
    ("pearson_expectation", "Pearson, expectation", 2),
    ("pearson_column_expectation", "Pearson, column-centred, expectation", 2),
)


def rows_csv(rows: Sequence[Any]) -> bytes:
    """Dataclass rows as CSV, one column per field."""
    if not rows:
        return b""
    names = [field.name for field in dataclasses.fields(rows[0])]
    return to_csv(names, ([getattr(row, name) for name in names] for row in rows))


def pooled_table(pooled: Pooled) -> str:
    """Predictors by quadrant over all splits, and the contrasts of eval-eval with the splits won."""
    parts = [_metric(pooled, *metric) for metric in METRICS]
    parts += [_contrasts(pooled, form) for form in (SAMPLED, EXPECTATION)]
    return "\n\n".join(part for part in parts if part)


def _metric(pooled: Pooled, metric: str, title: str, digits: int) -> str:
    found = {(r.predictor, r.quadrant): r for r in pooled.quadrants if r.metric == metric and r.value is not None}
    lines = [f"{title}\n{'':22s}" + "".join(f"{quadrant:>22s}" for quadrant in SHOWN_QUADRANTS)]
    for predictor in in_order(dict.fromkeys(p for p, _ in found)):
        cells = [_value(found.get((predictor, quadrant)), digits) for quadrant in SHOWN_QUADRANTS]
        lines.append(f"{predictor:22s}" + "".join(f"{cell:>22s}" for cell in cells))
    return "\n".join(lines) if found else ""


def _value(row: Any, digits: int) -> str:
    if row is None:
        return "n/a"
    value = f"{row.value:.{digits}f}"
    return value if row.low is None else f"{value} [{row.low:.{digits}f}, {row.high:.{digits}f}]"


def _contrasts(pooled: Pooled, form: str) -> str:
    rows = [r for r in pooled.contrasts if r.form == form and r.quadrant == EVAL_EVAL and r.difference is not None]
    lines = [f"eval-eval, MetaSFT minus the other, squared error ({form}): below 0 MetaSFT is better"]
    for r in rows:
        bounds = "" if r.low is None else f"[{r.low:.1f}, {r.high:.1f}]"
        lines.append(f"  {r.against:22s}{r.difference:9.1f} {bounds:20s} wins {r.wins} of {r.splits}")
    return "\n".join(lines) if rows else ""
