"""The notice of a spot machine's end: heard from either cloud, passed on once, and told where nobody answers."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from metagen_ray import spot
from metagen_ray.cli import main
from metagen_ray.errors import MachineError
from tests.metadata_service import handler


@contextmanager
def metadata(quiet_calls: int) -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), handler(quiet_calls)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("cloud", "seconds"), [("aws", 110), ("gcp", 25)])
def test_notice_is_waited_for_and_passed_on(monkeypatch: pytest.MonkeyPatch, cloud: str, seconds: int):
    asked, drained = [], []
    monkeypatch.setattr(spot, "_here", lambda: ("head:6379", "node"))
    monkeypatch.setattr(spot, "drain", lambda *arguments: drained.append(arguments))
    monkeypatch.setattr(spot.time, "sleep", asked.append)
    with metadata(3) as where:
        spot.watch(cloud, where)
    assert asked == [spot.POLL_S] * 3 and drained == [("head:6379", "node", seconds)]


def test_service_that_never_answers_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spot, "SILENT_S", 0.2)
    with metadata(0) as where:
        pass
    with pytest.raises(MachineError, match="runs on a machine of that cloud"):
        spot.watch("aws", where, poll_s=0.05)


def test_drain_that_is_refused_is_told():
    with pytest.raises(MachineError, match="does not drain node 00"):
        spot.drain("127.0.0.1:1", "00", 5)


def test_cloud_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["spot", "azure"]) == 2
    assert "there are aws, gcp" in capsys.readouterr().err
