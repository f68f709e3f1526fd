import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from metagen_ray.errors import StoreError
from metagen_ray.stages import pulse
from metagen_ray.stages.meter import Meter
from metagen_ray.stages.pulse import Pulse, driver_line, pace, read_pulse
from metagen_ray.store import open_store


def test_pulse_tells_what_stages_told_while_they_run_and_how_the_driver_ended(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pulse, "EVERY_S", 0.02)
    store = open_store(str(tmp_path))
    with pytest.raises(ValueError, match="broken"), Pulse(store, "run-1", "me@here:1") as told:
        meter, other = Meter("run-1", "judge truth", 3, pulse=told), Meter("run-1", "meta_sft", 1, pulse=told)
        for ok in (True, False):
            meter.outcome(ok, {})
        other.outcome(True, {})
        waiting = when(lambda: read_pulse(store, "run-1")["stages"].get("judge truth", {}).get("failed"))
        assert waiting == 1
        found = read_pulse(store, "run-1")
        assert found is not None and found["state"] == "running"
        judge, meta = found["stages"]["judge truth"], found["stages"]["meta_sft"]
        assert (judge["planned"], judge["done"], judge["failed"], judge["running"]) == (3, 1, 1, True)
        assert (meta["done"], meta["running"]) == (1, False)
        raise ValueError("broken")
    ended = read_pulse(store, "run-1")
    assert ended is not None and ended["state"] == "ended: broken"


def when(ready):

    end = time.monotonic() + 10
    while not ready() and time.monotonic() < end:
        time.sleep(0.01)
    return ready()


def test_pulse_that_cannot_be_written_does_not_stop_the_driver(tmp_path: Path, monkeypatch):
    store = open_store(str(tmp_path))

    def refuse(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "write_doc", refuse)
    with Pulse(store, "run-1", "me") as told:
        told.begin("judge truth", 1)
    assert read_pulse(store, "run-1") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"stages": 1, "driver": "x"}', b"\xff\xfe", b"null"])
def test_read_pulse_of_nonsense_is_none(tmp_path: Path, content: bytes):
    store = open_store(str(tmp_path))
    store.write_doc("studies/run-1/pulse.json", content)
    assert read_pulse(store, "run-1") is None


@pytest.mark.parametrize(
    ("state", "age_s", "words"),
    [("running", 2, "running"), ("running", 900, "silent"), ("finished", 900, "finished"), ("ended: x", 9, "ended: x")],
)
def test_driver_line_says_how_the_driver_is(state: str, age_s: float, words: str):
    written = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat(timespec="seconds")
    told = {"driver": "me@here:1", "written": written, "state": state, "stages": {}}
    assert words in driver_line(told) and "me@here:1" in driver_line(told)


def test_pace_is_shards_a_minute_and_the_time_left():
    told = json.loads('{"planned": 40, "done": 10, "failed": 0, "seconds": 20.0, "running": true}')
    assert pace(told, 30) == ("30.0/min", "1 min 00 s")
    assert pace(told, 0) == ("30.0/min", "")
    assert pace(None, 5) == ("", "") and pace({**told, "done": 0}, 5) == ("", "")
    assert pace({**told, "done": 1}, 600)[1] == "3 h 20 min"
