import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.table import BEGIN, END, newest, put_table, table


def line(**given: Any) -> dict[str, Any]:
    base = {
        "row": 1,
        "size": "1M",
        "what": "a bank",
        "against": "a loop",
        "unit": "adapters/s",
        "ours": 1234.5,
        "peer": 0.321,
        "ratio": 4.2,
        "low": 3.9,
        "high": 12.34,
        "aim": 4.0,
        "parity": 3.4e-6,
        "peak_share": 0.412,
        "machine": "a machine, 2 cores",
        "threads": 2,
        "commit": "abc",
        "date": "2030-01-01T00:00:00+00:00",
    }
    return base | given


def written(folder: Path, name: str, *lines: dict[str, Any]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(found) + "\n" for found in lines))


def test_newest_takes_the_last_line_of_every_figure_in_order(tmp_path: Path) -> None:
    later = "2030-01-02T00:00:00+00:00"
    written(tmp_path, "b", line(row=2, size="10M"), line(row=2))
    written(tmp_path, "a", line(ratio=5.0, date=later, machine="another"), line(ratio=9.0), line(against="another"))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"row": "deploy", "seconds": 17.5}\n{"row": 1, "torn')
    found = newest(tmp_path)
    assert [(r["row"], r["size"], r["against"]) for r in found] == [
        (1, "1M", "a loop"),
        (1, "1M", "another"),
        (2, "1M", "a loop"),
        (2, "10M", "a loop"),
    ]
    assert found[0]["ratio"] == 5.0


def test_table_shows_every_figure_under_its_machine() -> None:
    bare = {"ratio": 1, "low": 1, "high": 1, "parity": None, "peak_share": None, "aim": None, "threads": None}
    shown = table([line(), line(row=2, machine="a GPU", commit="def", **bare)])
    head, rule, first, *_ = shown.splitlines()
    assert head.count("|") == rule.count("|") == first.count("|")
    same = "| a bank | a loop | 1M | 1,234 adapters/s | 0.321 adapters/s |"
    assert f"| 1 {same} **4.2** (3.9, 12.3) | 4 | 3e-06 | 41% |" in first
    assert f"| 2 {same} **1** | – | – | – |" in shown
    assert "a machine, 2 cores; torch with 2 threads; 2030-01-01; commit abc." in shown
    assert "a GPU; 2030-01-01; commit def." in shown


def test_put_table_replaces_what_stands_between_the_markers() -> None:
    page = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    once = put_table(page, "new")
    assert once == f"above\n{BEGIN}\nnew\n{END}\nbelow\n"
    assert put_table(once, "new") == once


@pytest.mark.parametrize("page", ["no markers", BEGIN, f"{BEGIN}{END}{BEGIN}{END}"])
def test_put_table_refuses_a_page_without_one_place(page: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        put_table(page, "new")
