"""The cell table: truth and predictions of single cells with their counts. Knows nothing of quadrants or errors."""

from collections.abc import Mapping

import numpy as np

from metagen_ray.analysis.grid import Bools, Floats, Grid, Prediction, is_scored, propensity, question_means
from metagen_ray.analysis.tables import CellRow


def cell_rows(grid: Grid, predictions: Mapping[str, Prediction], marked: Mapping[str, Bools]) -> list[CellRow]:
    """Rows of the truth (`GT`), then of each prediction, over training domains, eval domains and coordinates.

    A prediction's cell without any score is left out: it was not asked.
    """
    truth_n = grid.truth_TEQNO.shape[3]
    rows = _rows_of(grid, "GT", grid.truth_TEQNO, truth_n, None, marked["GT"])
    for name, prediction in predictions.items():
        expected_TEO = None if prediction.expected_TEQO is None else propensity(prediction.expected_TEQO)
        rows += _rows_of(
            grid,
            name,
            prediction.score_TEQNO,
            prediction.sampled_n,
            expected_TEO,
            marked[name],
            asked_only=True,
        )
    return rows


def _rows_of(
    grid: Grid,
    name: str,
    score_TEQNO: Floats,
    sampled_n: int,
    expected_TEO: Floats | None,
    marked_TE: Bools,
    asked_only: bool = False,
) -> list[CellRow]:
    sampled_TEQNO = score_TEQNO[:, :, :, :sampled_n]
    sampled_TEO = propensity(question_means(sampled_TEQNO))
    if expected_TEO is None:
        expected_TEO = propensity(question_means(score_TEQNO))
    unscored_TE = (~is_scored(sampled_TEQNO)).sum(axis=(2, 3)).tolist()
    answers = sampled_TEQNO.shape[2] * sampled_TEQNO.shape[3]
    halves_T, halves_E = (["train" if m else "eval" for m in meta] for meta in (grid.train_meta_T, grid.eval_meta_E))
    shown_TE = ~np.isnan(expected_TEO[..., 0]) if asked_only else np.ones(marked_TE.shape, bool)
    rows = []
    for i, j in zip(*np.nonzero(shown_TE), strict=True):
        for o, (value, expected) in enumerate(zip(sampled_TEO[i, j], expected_TEO[i, j], strict=True)):
            rows.append(
                CellRow(
                    name, grid.train_ids[i], grid.eval_ids[j], halves_T[i], halves_E[j], o, _or_none(value),
                    answers, unscored_TE[i][j], _or_none(expected), bool(marked_TE[i, j]),
                )
            )  # fmt: skip
    return rows


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
