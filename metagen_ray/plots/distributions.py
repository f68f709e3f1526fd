"""Predicted against actual, and the distributions of propensities. Knows nothing of domains."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from metagen_ray.analysis.tables import QuadrantRow
from metagen_ray.plots.cells import CellTable
from metagen_ray.plots.picture import GRID, INK, MUTED, Picture, colour, note, panels, png, styled
from metagen_ray.view.names import META, QUADRANT_TITLES, SHOWN_QUADRANTS, TRUTH, UNTRAINED

EDGES = np.linspace(0, 100, 21)


@styled
def histograms(cells: CellTable, quadrants: Sequence[QuadrantRow]) -> Picture:
    """How propensities are distributed: truth, MetaSFT and UntrainedICL in each quadrant."""
    distance = {(r.predictor, r.quadrant): r.value for r in quadrants if r.metric == "wasserstein"}
    figure, grid = panels(1, 4, (10.2, 2.5), share_y=True)
    rows: list[tuple[str, str, float, float, int, float]] = []
    for axes, quadrant in zip(grid[0], SHOWN_QUADRANTS, strict=True):
        for predictor in (TRUTH, META, UNTRAINED):
            values = [own for _, _, own in cells.inside(predictor, quadrant)]
            if not values:
                continue
            count_N, _ = np.histogram(values, EDGES)
            share_N = 100.0 * count_N / len(values)
            _step(axes, predictor, share_N, distance.get((predictor, quadrant)))
            rows += [
                (predictor, quadrant, float(low), float(high), int(count), float(share))
                for low, high, count, share in zip(EDGES[:-1], EDGES[1:], count_N, share_N, strict=True)
            ]
        _finish(axes, quadrant, "share of cells, %" if axes is grid[0][0] else "")
    tallest = max((row[-1] for row in rows), default=1.0)
    grid[0][0].set_ylim(0, 1.45 * tallest)  # room for the legends
    caption = (
        "Distribution of propensities over the cells of each quadrant, in bins of 5 points. W is the Wasserstein-1"
        " distance to the truth, in points: a predictor may correlate well and still be miscalibrated."
    )
    columns = ("predictor", "quadrant", "bin_low", "bin_high", "cells", "share_percent")
    return Picture("histograms", "Distributions of propensities", caption, png(figure), columns, rows)


def _step(axes: Axes, predictor: str, share_N: np.ndarray, distance: float | None) -> None:
    label = "truth" if predictor == TRUTH else predictor
    if distance is not None and predictor != TRUTH:
        label += f", W {distance:.1f}"
    is_truth = predictor == TRUTH
    axes.stairs(
        share_N,
        EDGES,
        fill=is_truth,
        color="#c9c9c9" if is_truth else colour(predictor),
        lw=1.5,
        label=label,
        zorder=1 if is_truth else 2,
    )


def _finish(axes: Axes, quadrant: str, label: str) -> None:
    axes.set_title(f"{QUADRANT_TITLES[quadrant]}\n{quadrant}")
    axes.set_xlim(0, 100)
    axes.set_xlabel("propensity, points of 0-100")
    axes.set_ylabel(label)
    if axes.patches:
        axes.legend(loc="upper right", handlelength=1.2)
    else:
        note(axes, "no cell")


@styled
def scatter(cells: CellTable, quadrants: Sequence[QuadrantRow]) -> Picture:
    """Predicted against actual propensity of every cell, MetaSFT above UntrainedICL."""
    measured = {(r.predictor, r.quadrant, r.metric): r.value for r in quadrants}
    predictors = [p for p in (META, UNTRAINED) if cells.has(p)]
    figure, grid = panels(max(len(predictors), 1), 4, (10.2, 0.4 + 2.4 * max(len(predictors), 1)))
    rows: list[tuple[object, ...]] = []
    for line, predictor in zip(grid, predictors, strict=False):
        for axes, quadrant in zip(line, SHOWN_QUADRANTS, strict=True):
            found = cells.inside(predictor, quadrant)
            rows += [(predictor, quadrant, *place, truth, own) for place, truth, own in found]
            _points(axes, predictor, [t for _, t, _ in found], [v for _, _, v in found])
            figures = [
                f"{label} {value:.{digits}f}"
                for label, metric, digits in (("RMSE", "rmse", 1), ("r", "pearson", 2))
                if (value := measured.get((predictor, quadrant, metric))) is not None
            ]
            axes.text(0.03, 0.97, "\n".join(figures), transform=axes.transAxes, va="top", zorder=4)
            if predictor == predictors[0]:
                axes.set_title(f"{QUADRANT_TITLES[quadrant]}\n{quadrant}")
        line[0].set_ylabel(f"{predictor}, predicted")
    for axes in grid[-1]:
        axes.set_xlabel("actual propensity, points of 0-100")
    caption = "Each point is a cell: a training domain asked about an eval domain. On the line it is predicted right."
    columns = ("predictor", "quadrant", "train_domain", "eval_domain", "coordinate", "actual", "predicted")
    return Picture("predicted_actual", "Predicted against actual", caption, png(figure), columns, rows)


def _points(axes: Axes, predictor: str, truth: list[float], own: list[float]) -> None:
    axes.plot([0, 100], [0, 100], color=INK, lw=0.7, zorder=3)
    if truth:
        faint = float(np.clip(60.0 / np.sqrt(len(truth)) / 10.0, 0.12, 0.6))
        axes.scatter(truth, own, s=7, color=colour(predictor), alpha=faint, lw=0, zorder=2)
    else:
        note(axes, "no cell")
    axes.set(xlim=(-2, 102), ylim=(-2, 102), aspect="equal", xticks=(0, 50, 100), yticks=(0, 50, 100))
    axes.grid(color=GRID, lw=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelcolor=INK)
