"""The table in the terminal, and the order of predictors."""

from dataclasses import replace

from metagen_ray.analysis import Analysis
from metagen_ray.view.names import in_order
from metagen_ray.view.table import pivot, terminal_table
from tests.view.study import analysed


def lines_of(analysis: Analysis, title: str) -> dict[str, str]:
    block = next(b for b in terminal_table(analysis).split("\n\n") if b.startswith(title))
    return {line.split("  ")[0].rstrip(" *"): line for line in block.splitlines()[1:]}


def test_terminal_table_fits_a_terminal_and_shows_every_predictor() -> None:
    text = terminal_table(analysed())
    assert max(map(len, text.splitlines())) <= 102
    for predictor in {r.predictor for r in analysed().quadrants}:
        assert f"\n{predictor}" in text


def test_terminal_table_shows_value_and_interval_of_the_quadrant() -> None:
    row = next(
        r for r in analysed().quadrants if (r.predictor, r.quadrant, r.metric) == ("MetaSFT", "eval-eval", "rmse")
    )
    assert row.value is not None and row.low is not None and row.high is not None
    assert f"{row.value:.1f} [{row.low:.1f}, {row.high:.1f}]" in lines_of(analysed(), "RMSE, points")["MetaSFT"]


def test_terminal_table_without_an_interval_says_why() -> None:
    assert "8 are needed" in terminal_table(analysed(8))


def test_terminal_table_of_an_empty_quadrant_shows_na_and_no_number() -> None:
    rows = [
        replace(r, value=None, low=None, high=None, reason="no cell") if r.quadrant == "eval-eval" else r
        for r in analysed().quadrants
    ]
    line = lines_of(replace(analysed(), quadrants=rows), "RMSE, points")["Base"]
    assert line.split("]")[-2].strip().startswith("n/a")


def test_predictors_stand_in_the_same_order_whatever_the_order_of_rows() -> None:
    names = [
        "GT",
        "GT-TrainOnly/loo",
        "Mechanism/topical",
        "Other",
        "UntrainedICL/k=2",
        "MetaSFT",
        "UntrainedICL",
    ]
    expected = [
        "MetaSFT",
        "UntrainedICL",
        "UntrainedICL/k=2",
        "Mechanism/topical",
        "Other",
        "GT-TrainOnly/loo",
        "GT",
    ]
    assert in_order(names) == in_order(reversed(names)) == expected


def test_pivot_leaves_out_predictors_without_any_value() -> None:
    rows = [replace(r, value=None) if r.predictor == "Base" else r for r in analysed().quadrants]
    assert "Base" not in [line.predictor for line in pivot(rows, "rmse")]
