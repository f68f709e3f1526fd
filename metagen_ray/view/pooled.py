"""Several splits together, as text and CSV. Owns the table's layout; computes nothing."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from metagen_ray.analysis import Pooled
from metagen_ray.analysis.tables import EVAL_EVAL, EVALUATION, EXPECTATION, SAMPLED
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
    """Predictors by quadrant over all splits, the contrasts with the splits won, the blocks of eval-eval, the claim."""
    parts = [_metric(pooled, *metric) for metric in METRICS]
    parts += [_contrasts(pooled, form, quadrant) for form in (SAMPLED, EXPECTATION) for quadrant in EVALUATION]
    return "\n\n".join(part for part in (*parts, _blocks(pooled), _claims(pooled)) if part)


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


def _contrasts(pooled: Pooled, form: str, quadrant: str) -> str:
    rows = [r for r in pooled.contrasts if r.form == form and r.quadrant == quadrant and r.difference is not None]
    lines = [f"{quadrant}, MetaSFT minus the other, squared error ({form}): below 0 MetaSFT is better"]
    for r in rows:
        bounds = "" if r.low is None else f"[{r.low:.1f}, {r.high:.1f}]"
        tests = "  ".join(
            f"{name} {value:.3g}" for name, value in (("p", r.p), ("p_joint", r.p_joint)) if value is not None
        )
        lines.append(f"  {r.against:22s}{r.difference:9.1f} {bounds:20s} wins {r.wins} of {r.splits}  {tests}".rstrip())
    return "\n".join(lines) if rows else ""


def _blocks(pooled: Pooled) -> str:
    """RMSE of eval-eval by block, the expectation where there is one."""
    rows = [r for r in pooled.blocks if r.quadrant == EVAL_EVAL and r.metric in ("rmse", "rmse_expectation")]
    found = {
        (r.predictor, r.block): r.value for metric in ("rmse", "rmse_expectation") for r in rows if r.metric == metric
    }
    blocks = list(dict.fromkeys(block for _, block in found))
    lines = [f"eval-eval by block, RMSE\n{'':22s}" + "".join(f"{block:>16s}" for block in blocks)]
    for predictor in in_order(dict.fromkeys(p for p, _ in found)):
        values = ("n/a" if (v := found.get((predictor, block))) is None else f"{v:.1f}" for block in blocks)
        lines.append(f"{predictor:22s}" + "".join(f"{value:>16s}" for value in values))
    return "\n".join(lines) if found else ""


def _claims(pooled: Pooled) -> str:
    return "\n".join(
        f"MetaSFT beats {', '.join(c.against)} in {', '.join(c.quadrants)} ({c.form}): "
        + (
            f"{'yes' if c.holds else 'not shown'}, p = {c.p:.3g}, hardest {c.hardest}"
            if c.p is not None
            else str(c.reason)
        )
        for c in pooled.claims
    )
