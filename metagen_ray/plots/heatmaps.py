"""The grid as an image: truth, prediction and error, domains by half and family. Knows no metrics."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from metagen_ray.plots.cells import CellTable
from metagen_ray.plots.picture import INK, Picture, panels, png, styled
from metagen_ray.view.names import TRUTH

ERROR_LIMIT = 50.0  # larger errors have the last colour, so that the two predictors' pictures compare
MAX_LABELS = 24


@styled
def heat_maps(cells: CellTable, predictor: str, families: Mapping[str, str]) -> Picture:
    """Truth, one predictor and its error. Rows are training domains, columns eval domains; grey cells have no score.

    A score of several coordinates is shown by its first.
    """
    train_halves, eval_halves = cells.halves
    train_ids, eval_ids = _sorted(train_halves, families), _sorted(eval_halves, families)
    truth_TE = _matrix(cells, TRUTH, train_ids, eval_ids)
    own_TE = _matrix(cells, predictor, train_ids, eval_ids)
    figure, (line,) = panels(1, 3, (10.2, 3.5))
    _image(axes=line[0], value_TE=truth_TE, title="truth", colours="viridis", limits=(0, 100))
    shown = _image(axes=line[1], value_TE=own_TE, title=predictor, colours="viridis", limits=(0, 100))
    error = _image(line[2], own_TE - truth_TE, f"{predictor} - truth", "RdBu_r", (-ERROR_LIMIT, ERROR_LIMIT))
    for axes in line:
        _borders(axes, train_ids, eval_ids, train_halves, eval_halves, families)
    line[0].set_ylabel("trained on  (meta-eval | meta-train)")
    unit = "propensity, points" + (" (coordinate 0)" if cells.coordinates > 1 else "")
    for image, axes, label, extend in (
        (shown, line[:2], unit, "neither"),
        (error, line[2:], "error, points", "both"),
    ):
        bar = figure.colorbar(image, ax=axes, label=label, shrink=0.75, pad=0.02, aspect=28, extend=extend)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    rows = [
        (
            i,
            j,
            train_halves[i],
            eval_halves[j],
            families.get(i, ""),
            families.get(j, ""),
            _empty(t),
            _empty(p),
        )
        for i, truth_E, own_E in zip(train_ids, truth_TE, own_TE, strict=True)
        for j, t, p in zip(eval_ids, truth_E, own_E, strict=True)
    ]
    columns = (
        "train_domain", "eval_domain", "train_half", "eval_half", "train_family", "eval_family", "truth", "predicted",
    )  # fmt: skip
    caption = (
        "Rows are training domains, columns the domains asked about, both by half (heavy lines) and by family; cells"
        " without a score are grey. Red: predicted too high."
    )
    return Picture(f"heatmap_{predictor}", f"The grid: {predictor}", caption, png(figure), columns, rows)


def _sorted(halves: Mapping[str, str], families: Mapping[str, str]) -> list[str]:
    """Domains with meta-train first, then by family, then by id."""
    return sorted(halves, key=lambda d: (halves[d] != "train", families.get(d, ""), d))


def _matrix(cells: CellTable, predictor: str, train_ids: Sequence[str], eval_ids: Sequence[str]) -> NDArray[np.float64]:
    values = cells.values.get(predictor, {})
    return np.array([[values.get((i, j, 0), np.nan) for j in eval_ids] for i in train_ids], float)


def _empty(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _image(axes: Axes, value_TE: NDArray[np.float64], title: str, colours: str, limits: tuple[float, float]):
    axes.set_facecolor("#bdbdbd")
    axes.set_title(title)
    axes.set_xlabel("asked about  (meta-train | meta-eval)")
    for side in axes.spines.values():
        side.set_visible(False)
    masked = np.ma.masked_invalid(value_TE)
    return axes.imshow(masked, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="equal", interpolation="nearest")


def _borders(
    axes: Axes,
    train_ids: Sequence[str],
    eval_ids: Sequence[str],
    train_halves: Mapping[str, str],
    eval_halves: Mapping[str, str],
    families: Mapping[str, str],
) -> None:
    """Lines between halves and families, and the families' names at the edges."""
    for ids, halves, line, place in (
        (train_ids, train_halves, axes.axhline, axes.set_yticks),
        (eval_ids, eval_halves, axes.axvline, axes.set_xticks),
    ):
        runs = [(halves[d], families.get(d, "")) for d in ids]
        for edge in _edges(runs):
            line(edge - 0.5, color="white", lw=0.5, alpha=0.7)
        for edge in _edges([half for half, _ in runs]):
            line(edge - 0.5, color=INK, lw=1.4)
        starts = [0, *_edges(runs), len(runs)]
        middles = [(low + high - 1) / 2 for low, high in pairwise(starts)]
        labels = [runs[start][1] for start in starts[:-1]]
        few = len(labels) <= MAX_LABELS and any(labels)
        place(middles if few else [], labels if few else [])
    axes.tick_params(length=0, labelsize=6)
    axes.tick_params(axis="x", labelrotation=90)


def _edges(keys: Sequence[object]) -> list[int]:
    return [n for n in range(1, len(keys)) if keys[n] != keys[n - 1]]
