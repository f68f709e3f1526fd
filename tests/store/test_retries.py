"""A service that fails, or answers into the void: asked again with a bound, and never believed twice."""

import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from metagen_ray.errors import StoreError
from metagen_ray.store import content_key, open_store
from metagen_ray.store.store import objects_at
from tests.store.s3_server import BUCKET


class Quiet(http.server.BaseHTTPRequestHandler):
    """Handles every method alike, and logs nothing."""

    def handle_any(self) -> None:
        raise NotImplementedError

    def __getattr__(self, name: str):
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _serving(handler: type[Quiet]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def _lossy_proxy(endpoint: str) -> Iterator[tuple[str, list[str]]]:
    """A way to the real server that carries every create out, and drops the reply to the first one of each object."""
    dropped: list[str] = []

    class Proxy(Quiet):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, content = _upstream(endpoint, self.command, self.path, body, dict(self.headers))
            if self.headers.get("If-None-Match") and self.path not in dropped:
                dropped.append(self.path)
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    with _serving(Proxy) as address:
        yield address, dropped


def _upstream(
    endpoint: str, method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, list[tuple[str, str]], bytes]:
    """What the real server answers: status, headers worth passing on, content."""
    upstream = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=30)
    upstream.request(method, path, body, headers)
    answer = upstream.getresponse()
    own = ("transfer-encoding", "connection", "date", "server")
    return answer.status, [(n, v) for n, v in answer.getheaders() if n.lower() not in own], answer.read()


def test_service_that_fails_is_asked_a_bounded_number_of_times(s3_endpoint: str):
    calls: list[str] = []

    class Failing(Quiet):
        def handle_any(self) -> None:
            calls.append(self.path)
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with _serving(Failing) as endpoint, pytest.raises(StoreError, match="503"):
        open_store(f"s3://{BUCKET}/x?endpoint={endpoint}")
    assert len(calls) == 3


def test_create_whose_reply_was_lost_is_committed_all_the_same(s3_endpoint: str):
    key = content_key({"lost": 1})
    with _lossy_proxy(s3_endpoint) as (address, dropped):
        store = open_store(f"s3://{BUCKET}/lossy?endpoint={address}")
        store.put_shard("judge", key, pa.table({"a": [1]}), {})
        assert any(path.endswith(key) for path in dropped)
    assert open_store(f"s3://{BUCKET}/lossy?endpoint={s3_endpoint}").read_shard("judge", key)[1]["rows"] == 1


def test_lease_whose_reply_was_lost_is_held_by_who_asked(s3_endpoint: str):
    with _lossy_proxy(s3_endpoint) as (address, dropped):
        store = open_store(f"s3://{BUCKET}/lossy-lease?endpoint={address}")
        with store.lease("drive", "alice", 60) as lease:
            assert any("leases/drive" in path for path in dropped)
            assert (lease.token, lease.lost) == (1, False)
    tenure = objects_at(f"s3://{BUCKET}/lossy-lease?endpoint={s3_endpoint}").read("leases/drive/000000001")
    assert tenure is not None
    assert b'"released": true' in tenure


def test_service_in_trouble_for_a_while_is_waited_for(s3_endpoint: str):
    key, ends = content_key({"trouble": 1}), time.monotonic()

    class Recovering(Quiet):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, content = 500, [("Content-Length", "0")], b""
            if time.monotonic() >= ends:
                status, headers, content = _upstream(s3_endpoint, self.command, self.path, body, dict(self.headers))
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    with _serving(Recovering) as endpoint:
        store = open_store(f"s3://{BUCKET}/trouble?endpoint={endpoint}")
        ends = time.monotonic() + 6
        assert store.put_shard("judge", key, pa.table({"a": [1]}), {})
        assert time.monotonic() > ends
    assert open_store(f"s3://{BUCKET}/trouble?endpoint={s3_endpoint}").has("judge", key)


@pytest.mark.slow
def test_every_request_outlasts_a_service_in_trouble_for_half_a_minute(s3_endpoint: str):
    """Waits are drawn: of 40 requests several would have used up 60 tries before."""
    ends = time.monotonic() + 30

    class Recovering(Quiet):
        def handle_any(self) -> None:
            content = b"" if time.monotonic() < ends else b"<ListBucketResult/>"
            self.send_response(200 if content else 500)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with _serving(Recovering) as endpoint, ThreadPoolExecutor(40) as pool:
        objects = objects_at(f"s3://{BUCKET}/x?endpoint={endpoint}")
        assert list(pool.map(lambda _: list(objects.list("pool")), range(40))) == [[]] * 40
        assert time.monotonic() > ends
