"""The stable files for other programs, and CSV in general. Owns their columns; knows no pictures and no page.

Programs outside this project read these files: a column is added at the end and never renamed.
"""

import csv
import io
from collections.abc import Iterable, Sequence

from metagen_ray.analysis.tables import BlockRow, CellRow, ClaimRow, ContrastRow, QuadrantRow

QUADRANT_COLUMNS = ("predictor", "quadrant", "metric", "value", "low", "high", "cells")
CELL_COLUMNS = (
    "predictor", "train_domain", "eval_domain", "train_half", "eval_half", "coordinate", "propensity", "answers",
    "unscored",
)  # fmt: skip
CONTRAST_COLUMNS = (
    "subject", "against", "quadrant", "form", "difference", "low", "high", "t", "df", "p", "p_holm", "p_better",
    "cells", "reason",
)  # fmt: skip
CLAIM_COLUMNS = ("subject", "against", "quadrants", "form", "p", "holds", "hardest", "reason")
BLOCK_COLUMNS = ("block", "predictor", "quadrant", "metric", "value", "low", "high", "cells", "reason")


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """UTF-8 CSV with a header; None is an empty field, a float keeps all its digits, a tuple is joined by `; `."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_field(value) for value in row] for row in rows])
    return buffer.getvalue().encode()


def quadrants_csv(rows: Iterable[QuadrantRow]) -> bytes:
    """report/quadrants.csv."""
    return _attributes(QUADRANT_COLUMNS, rows)


def cells_csv(rows: Iterable[CellRow]) -> bytes:
    """report/cells.csv."""
    return _attributes(CELL_COLUMNS, rows)


def contrasts_csv(rows: Iterable[ContrastRow]) -> bytes:
    """report/contrasts.csv."""
    return _attributes(CONTRAST_COLUMNS, rows)


def claims_csv(rows: Iterable[ClaimRow]) -> bytes:
    """report/claims.csv."""
    return _attributes(CLAIM_COLUMNS, rows)


def blocks_csv(rows: Iterable[BlockRow]) -> bytes:
    """report/blocks.csv."""
    return _attributes(BLOCK_COLUMNS, rows)


def _attributes(columns: Sequence[str], rows: Iterable[object]) -> bytes:
    return to_csv(columns, ([getattr(row, name) for name in columns] for row in rows))


def _field(value: object) -> object:
    if isinstance(value, tuple):
        return "; ".join(map(str, value))
    return repr(float(value)) if isinstance(value, float) else value
