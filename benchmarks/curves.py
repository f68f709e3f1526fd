"""Curves: the numbers as CSV, and a picture of them where matplotlib is installed. Knows no measurement."""

import csv
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from benchmarks.measure import RESULTS


@dataclass(frozen=True, slots=True)
class Curve:
    """Rows of (line, x, y, low, high) under `columns`, lines together; the columns name the axes."""

    name: str
    title: str
    columns: tuple[str, str, str, str, str]
    rows: Sequence[tuple[str, float, float, float, float]]
    log_x: bool = True


def write_curve(curve: Curve, folder: Path = RESULTS) -> None:
    """Write NAME.csv and NAME.png into the folder; without matplotlib the CSV alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{curve.name}.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(curve.columns)
        table.writerows([line, *(float(f"{n:.5g}") for n in numbers)] for line, *numbers in curve.rows)
    if importlib.util.find_spec("matplotlib"):
        (folder / f"{curve.name}.png").write_bytes(_picture(curve))


def _picture(curve: Curve) -> bytes:
    from metagen_ray.plots.picture import GRID, panels, png, styled

    @styled
    def draw() -> bytes:
        figure, [[axes]] = panels(1, 1, (4.5, 3.0))
        for line, points in groupby(curve.rows, key=lambda row: row[0]):
            _, x, y, low, high = zip(*points, strict=True)
            (drawn,) = axes.plot(x, y, marker="o", markersize=3, linewidth=1, label=line)
            axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
        if curve.log_x:
            axes.set_xscale("log", base=2)
        ticks = sorted({row[1] for row in curve.rows})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.set_yscale("log")
        axes.set_title(curve.title)
        axes.set_xlabel(curve.columns[1].replace("_", " "))
        axes.set_ylabel(curve.columns[2].replace("_", " "))
        axes.grid(axis="y", color=GRID, linewidth=0.5)
        axes.legend()
        return png(figure)

    return draw()
