"""A picture and the table it shows, and the look that all pictures share. Knows no study.

Colours are those of Okabe and Ito (2008), told apart by people with any colour vision; a predictor has the same one
everywhere.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

DPI = 180
GRID, INK, MUTED = "#dcdcdc", "#222222", "#767676"
_FAMILY_COLOURS = {
    "GT": "#222222",
    "MetaSFT": "#0072B2",
    "UntrainedICL": "#E69F00",
    "Base": "#8C8C8C",
    "Scrambled": "#CC79A7",
    "Mechanism": "#56B4E9",
    "GT-Additive": "#7A5C00",
    "GT-EvalOnly": "#009E73",
    "GT-TrainOnly": "#D55E00",
    "GT-same": "#222222",
    "GT-seed": "#222222",
}
# Decorates every function that draws; the caller's own matplotlib settings stay as they are.
styled = mpl.rc_context(
    {
        "font.family": "DejaVu Sans",
        "font.size": 8,
        "axes.titlesize": 9,
        "axes.labelsize": 8,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.labelsize": 7.5,
        "ytick.labelsize": 7.5,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "legend.frameon": False,
        "legend.fontsize": 7.5,
    }
)


@dataclass(frozen=True)
class Picture:
    """One figure: what it is called, says and shows. `rows` under `columns` are all numbers that are drawn."""

    name: str
    title: str
    caption: str
    png: bytes
    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]]


def colour(predictor: str) -> str:
    """The colour of a predictor; variants share their family's."""
    return _FAMILY_COLOURS.get(predictor.split("/")[0], "#F0C808")


def faded(shade: str) -> tuple[float, float, float]:
    """A colour half way to white."""
    red, green, blue = to_rgb(shade)
    return (1 + red) / 2, (1 + green) / 2, (1 + blue) / 2


def panels(
    rows: int, columns: int, size: tuple[float, float], share_y: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a grid of axes; `size` in inches."""
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row" if share_y else False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid.tolist()


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def note(axes: Axes, text: str) -> None:
    """A grey remark in the middle of axes that have nothing to show."""
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=MUTED,
        fontsize=7.5,
        wrap=True,
    )
