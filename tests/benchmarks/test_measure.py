import json
from pathlib import Path

import pytest

from benchmarks.measure import ADDED, MEASURED, Options, append_row, compared, fastest, interleave, rates, ratio_of


def test_interleave_warms_up_once_and_then_takes_turns() -> None:
    called = []
    seconds = interleave({"ours": lambda: called.append("a"), "peer": lambda: called.append("b")}, rounds=3)
    assert called == ["a", "b"] * 4
    assert {name: len(found) for name, found in seconds.items()} == {"ours": 3, "peer": 3}


def test_interleave_times_each_side_by_itself() -> None:
    def busy() -> None:
        sum(range(2_000_000))

    seconds = interleave({"slow": busy, "fast": lambda: None}, rounds=2)
    assert min(seconds["slow"]) > 10 * max(seconds["fast"])


def test_fastest_names_the_quickest_candidate() -> None:
    assert fastest({"slow": lambda: sum(range(2_000_000)), "fast": lambda: None}) == "fast"


def test_ratio_pairs_the_rounds() -> None:
    # The machine halves its speed in the second round, for both alike: the ratio does not move.
    ratio = ratio_of(ours=rates([1.0, 2.0, 1.0], units=8), peer=rates([4.0, 8.0, 5.0], units=8))
    assert (ratio.median, ratio.low, ratio.high) == (4.0, 4.0, 5.0)
    with pytest.raises(ValueError, match="argument"):
        ratio_of([1.0], [1.0, 2.0])


def test_compared_gives_medians_and_what_stands_beside_them() -> None:
    row = compared(1, "1M", "a bank", "a loop", "adapters/s", [4.0, 8.0, 6.0], [2.0, 2.0, 2.0], parity=1e-6, steps=48)
    assert (row["ours"], row["peer"], row["ratio"], row["low"], row["high"]) == (6.0, 2.0, 3.0, 2.0, 4.0)
    assert (row["unit"], row["steps"], row["rounds"]) == ("adapters/s", 48, 3)


def test_append_row_writes_one_json_line_with_every_field(tmp_path: Path) -> None:
    path = tmp_path / "results" / "bank.jsonl"
    path.parent.mkdir()
    path.write_text('{"torn": ')
    for _ in range(2):
        append_row(path, compared(1, "1M", "a bank", "a loop", "adapters/s", [1 / 3], [1.0]))
    _, *lines = path.read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == 2
    assert all(name in line for line in found for name in (*MEASURED, *ADDED))
    assert found[0]["ours"] == 0.3333
    assert "cores" in found[0]["machine"]


def test_append_row_refuses_a_figure_without_its_fields(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="parity, peak_share"):
        append_row(tmp_path / "x.jsonl", {n: 1 for n in ("row", "size", "ours", "peer", "ratio", "low", "high")})
    assert not (tmp_path / "x.jsonl").exists()


def test_append_row_refuses_what_is_no_number(tmp_path: Path) -> None:
    row = compared(1, "1M", "a bank", "a loop", "adapters/s", [1.0], [1.0], parity=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        append_row(tmp_path / "x.jsonl", row)


def test_quick_measures_fewer_rounds() -> None:
    assert Options(("1M",), quick=True).rounds < Options(("1M",)).rounds
    assert Options(("1M",)).rounds >= 5
