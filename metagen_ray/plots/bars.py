"""Error and correlation of every predictor in every quadrant, as bars with intervals. Knows no cells."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from metagen_ray.analysis.tables import QuadrantRow
from metagen_ray.plots.picture import GRID, INK, MUTED, Picture, colour, faded, panels, png, styled
from metagen_ray.view.names import FLOOR_TITLES, FLOORS, QUADRANT_TITLES, SHOWN_QUADRANTS, TRUTH, in_order

COLUMNS = ("predictor", "quadrant", "metric", "value", "low", "high", "cells", "reason")
CORRELATIONS = {"pearson": "Pearson", "spearman": "Spearman", "pearson_column": "Pearson, column-centred"}
FLOOR_LINES = {"GT": "-", "GT-same": "--", "GT-seed": ":"}
BAR_INCHES, PANEL_INCHES = 0.19, 2.1

Table = Mapping[tuple[str, str, str], QuadrantRow]


@styled
def rmse_bars(quadrants: Sequence[QuadrantRow]) -> Picture:
    """The study's central figure: RMSE of every predictor in every quadrant, floors as lines."""
    table = {(r.predictor, r.quadrant, r.metric): r for r in quadrants}
    shown = [p for p in in_order(r.predictor for r in quadrants) if p not in FLOORS]
    drawn = [r for r in quadrants if r.metric in ("rmse", "rmse_expectation") and r.quadrant in SHOWN_QUADRANTS]
    figure, grid = panels(1, 4, (10.2, 1.3 + BAR_INCHES * len(shown)), share_y=True)
    for axes, quadrant in zip(grid[0], SHOWN_QUADRANTS, strict=True):
        _rows(axes, shown, table, quadrant, "rmse")
        _expectations(axes, shown, table, quadrant)
        for floor in FLOORS:
            row = table.get((floor, quadrant, "rmse"))
            if row is not None and row.value is not None:
                axes.axvline(row.value, color=INK, lw=0.9, ls=FLOOR_LINES[floor], zorder=3)
        axes.set_title(_title(table, shown, quadrant, "rmse"))
        axes.set_xlabel("RMSE, points of 0-100")
        axes.set_xlim(0, 1.03 * _reach(drawn))
    _name_rows(grid[0][0], shown, {r.predictor for r in quadrants if r.oracle})
    present = [f for f in FLOORS if any((f, q, "rmse") in table for q in SHOWN_QUADRANTS)]
    handles = [Line2D([], [], color=INK, lw=0.9, ls=FLOOR_LINES[f], label=FLOOR_TITLES[f]) for f in present]
    handles.append(
        Line2D([], [], color=INK, marker="D", ls="", ms=3.5, mfc="white", label="without own sampling noise")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    caption = (
        "Root mean squared error over the cells of each quadrant, as sampled like the truth; whiskers are intervals"
        " from a two-way cluster bootstrap over domains. Lower is better; no predictor can be expected below the floor."
        " † reads answers of the fine-tuned models that a user would not have."
    )
    return Picture("rmse", "Prediction error by quadrant", caption, png(figure), COLUMNS, _cells_of(drawn))


@styled
def correlation_bars(quadrants: Sequence[QuadrantRow]) -> Picture:
    """Pearson, Spearman and column-centred Pearson of every predictor that has an interval or a value."""
    table = {(r.predictor, r.quadrant, r.metric): r for r in quadrants}
    shown = [p for p in in_order(r.predictor for r in quadrants) if p not in FLOORS and not _is_redraw(p)]
    drawn = [
        r
        for r in quadrants
        if r.metric in CORRELATIONS and r.predictor in (*shown, TRUTH) and r.quadrant in SHOWN_QUADRANTS
    ]
    lowest = max(-1.0, min([-0.2, *(v for r in drawn for v in (r.value, r.low) if v is not None)]) - 0.03)
    figure, grid = panels(3, 4, (10.2, 1.2 + 3 * (0.55 + BAR_INCHES * len(shown))), share_y=True)
    oracles = {r.predictor for r in quadrants if r.oracle}
    for line, (metric, label) in zip(grid, CORRELATIONS.items(), strict=True):
        for axes, quadrant in zip(line, SHOWN_QUADRANTS, strict=True):
            _rows(axes, shown, table, quadrant, metric)
            ceiling = table.get((TRUTH, quadrant, metric))
            if ceiling is not None and ceiling.value is not None:
                axes.axvline(ceiling.value, color=INK, lw=0.9, zorder=3)
            axes.axvline(0, color=MUTED, lw=0.6, zorder=1)
            axes.set_xlim(lowest, 1.02)
            axes.set_xlabel(label)
            if line is grid[0]:
                axes.set_title(_title(table, shown, quadrant, metric))
        _name_rows(line[0], shown, oracles)
    figure.legend(
        handles=[Line2D([], [], color=INK, lw=0.9, label="two halves of the truth with each other (GT)")],
        loc="outside lower center",
    )
    caption = (
        "Correlation with the truth over cells. Column-centred: each eval domain's mean is removed from both"
        " sides, so only what the training did is left. n/a: the predictor is constant along that axis. Higher is"
        " better. † as above."
    )
    return Picture("correlation", "Correlation by quadrant", caption, png(figure), COLUMNS, _cells_of(drawn))


def _reach(rows: Sequence[QuadrantRow]) -> float:
    """The largest number to be drawn, so that all panels share one scale."""
    return max([1.0, *(v for r in rows for v in (r.value, r.high) if v is not None)])


def _is_redraw(predictor: str) -> bool:
    """Baselines that deal single cells stand in the table; as correlations they only say less than the mean does."""
    return predictor.endswith(("/dealt", "/one"))


def _rows(axes: Axes, shown: Sequence[str], table: Table, quadrant: str, metric: str) -> None:
    for place, predictor in enumerate(shown):
        row = table.get((predictor, quadrant, metric))
        if row is None or row.value is None:
            axes.text(0, place, " n/a", va="center", ha="left", color=MUTED, fontsize=6.5)
            continue
        shade = colour(predictor)
        axes.barh(place, row.value, height=0.68, color=faded(shade) if row.oracle else shade, zorder=2)
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color=INK, lw=0.9, zorder=4, solid_capstyle="butt")
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID, lw=0.5, zorder=0)
    axes.set_axisbelow(True)


def _expectations(axes: Axes, shown: Sequence[str], table: Table, quadrant: str) -> None:
    for place, predictor in enumerate(shown):
        row = table.get((predictor, quadrant, "rmse_expectation"))
        if row is not None and row.value is not None:
            axes.plot(row.value, place, marker="D", ms=3.5, mfc="white", mec=INK, mew=0.7, zorder=5)


def _name_rows(axes: Axes, shown: Sequence[str], oracles: set[str]) -> None:
    axes.set_yticks(range(len(shown)), [p + (" †" if p in oracles else "") for p in shown])


def _title(table: Table, shown: Sequence[str], quadrant: str, metric: str) -> str:
    rows = [table.get((p, quadrant, metric)) for p in shown]
    cells = max((row.cells for row in rows if row is not None), default=0)
    return f"{QUADRANT_TITLES[quadrant]}\n{quadrant}, {cells:,} cells"


def _cells_of(rows: Sequence[QuadrantRow]) -> list[tuple[object, ...]]:
    return [tuple(getattr(row, name) for name in COLUMNS) for row in rows]
