"""Lines for a person, and the same lines and more for programs."""

import json

from metagen_ray import progress
from metagen_ray.cli import main
from metagen_ray.progress import Progress, about, say, tell


def test_lines_for_a_person_say_nothing_of_single_shards(capsys, monkeypatch):
    monkeypatch.delenv("METAGEN_LOG", raising=False)
    tell("shard committed", stage="judge", shard="a" * 64)
    say("report: here", stage="report")
    with Progress("judge", 2) as bar:
        bar.advance(2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "report: here" and lines[-1].startswith("judge: 2/2 shards in 0.")
    assert not any("shard committed" in line for line in lines)


def test_every_line_for_programs_is_an_object_with_run_stage_and_shard(capsys, monkeypatch):
    monkeypatch.setenv("METAGEN_LOG", "json")
    monkeypatch.setattr(progress, "_about", {})
    about(run="pocket-1")
    tell("shard committed", stage="judge", shard="a" * 64, seconds=0.5)
    with Progress("judge", 2) as bar:
        bar.advance(2)
    shard, *_, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert {**shard, "time": ""} == {
        "time": "", "message": "shard committed", "run": "pocket-1", "stage": "judge", "shard": "a" * 64, "seconds": 0.5
    }  # fmt: skip
    assert (last["run"], last["stage"], last["done"], last["planned"]) == ("pocket-1", "judge", 2, 2)
    assert shard["time"] <= last["time"]


def test_error_that_ends_a_command_is_an_object_too(capsys, monkeypatch):
    monkeypatch.setenv("METAGEN_LOG", "json")
    monkeypatch.setattr(progress, "_about", {})
    code = main(["plan", "no-such-study"])
    told = capsys.readouterr()
    line = json.loads(told.out)
    assert code != 0 and line["exit_code"] == code and "no-such-study" in line["message"] and not told.err
