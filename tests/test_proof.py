"""The runner of the proof campaigns."""

import json
from pathlib import Path

from tests import proof


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{") and line.endswith("}")]


def counting(log: list[str], name: str):
    def piece() -> dict[str, object]:
        log.append(name)
        return {"calls": len(log)}

    return piece


def failing() -> dict[str, object]:
    raise RuntimeError("a shard was lost")


def test_proof_interrupted_goes_on_with_the_missing_piece(tmp_path: Path) -> None:
    results, log = tmp_path / "proof.jsonl", []
    assert proof.run({"a": counting(log, "a")}, results, "c1") == 0
    assert proof.run({"a": counting(log, "a"), "b": counting(log, "b")}, results, "c1") == 0
    assert log == ["a", "b"]
    assert [(r["piece"], r["commit"]) for r in lines(results)] == [("a", "c1"), ("b", "c1")]


def test_proof_runs_again_for_another_commit_or_when_told(tmp_path: Path) -> None:
    results, log = tmp_path / "proof.jsonl", []
    for commit, again in (
        ("c1", False),
        ("c2", False),
        ("c2", True),
        ("c2+changes", False),
        ("c2+changes", False),
    ):
        proof.run({"a": counting(log, "a")}, results, commit, again)
    assert len(log) == 5


def test_proof_failed_piece_is_not_recorded_and_the_rest_runs(tmp_path: Path) -> None:
    results, log = tmp_path / "proof.jsonl", []
    assert proof.run({"bad": failing, "good": counting(log, "good")}, results, "c1") == 1
    assert [r["piece"] for r in lines(results)] == ["good"]


def test_proof_after_a_torn_line_keeps_both_records_readable(tmp_path: Path) -> None:
    results, log = tmp_path / "proof.jsonl", []
    results.write_text('{"piece": "a", "comm')
    proof.run({"a": counting(log, "a")}, results, "c1")
    proof.run({"a": counting(log, "a")}, results, "c1")
    assert log == ["a"]
    assert [r["piece"] for r in lines(results)] == ["a"]
