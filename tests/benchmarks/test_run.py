import re

import pytest

from benchmarks import run
from benchmarks.engine import Vllm
from benchmarks.measure import ROOT
from benchmarks.run import SCRIPTS, Script, main


def test_unknown_row_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["77"])
    assert ended.value.code == 2
    assert "no row 77; there are 1, 2" in capsys.readouterr().err


def test_row_past_its_limit_is_ended_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "SCRIPTS", {**SCRIPTS, "1": Script(SCRIPTS["1"].module, limit_s=0.05)})
    assert main(["1", "--quick"]) == 1
    told = capsys.readouterr().err
    assert "row 1: stopped after its limit of 0 s" in told
    assert "failed: row 1" in told


def test_curve_lies_as_numbers_and_as_a_picture(tmp_path) -> None:
    from benchmarks.curves import Curve, write_curve

    columns = ("size", "adapters", "tokens_per_s", "low", "high")
    rows = [("1M", 1.0, 100.0, 90.0, 110.0), ("1M", 2.0, 190.123456, 180.0, 200.0)]
    write_curve(Curve("bank", "A title", columns, rows), tmp_path)
    assert (tmp_path / "bank.csv").read_text().splitlines() == [
        ",".join(columns),
        "1M,1.0,100.0,90.0,110.0",
        "1M,2.0,190.12,180.0,200.0",
    ]
    assert (tmp_path / "bank.png").read_bytes().startswith(b"\x89PNG")


def test_plain_study_has_every_call_that_the_stages_make_of_the_app() -> None:
    source = ROOT / "metagen_ray"
    texts = [(source / name).read_text() for name in ("stages/answers.py", "stages/judge.py", "serving/judge.py")]
    called = set(re.findall(r"self\._?client\.(\w+)\(", "".join(texts)))
    assert {"complete", "next_token_logprobs"} <= called
    assert [name for name in called if not hasattr(Vllm, name)] == []
