"""Listings of buckets: every name once, and the pages of many names side by side."""

import http.server
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest

from metagen_ray.store import content_key
from metagen_ray.store.store import objects_at
from tests.store.s3_server import BUCKET, credentials

PAGE = 1000
LATENCY_S = 0.1


def test_list_gives_every_name_once_wherever_it_sorts(root: str):
    objects = objects_at(root)
    odd = ["0", "1", "9", "a", "f", "f" * 64, "A", "_", "zz", "5x/inner", "notes of a person.txt"]
    names = [*odd, *(content_key({"n": n}) for n in range(PAGE))]
    for name in names:
        objects.create(f"pool/judge/{name}", b"")
    objects.create("pool/judge_again/0", b"")
    assert sorted(objects.list("pool/judge")) == sorted(f"pool/judge/{name}" for name in names)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize("many", [PAGE - 1, PAGE, PAGE + 1, 20 * PAGE])
def test_list_of_many_pages_asks_for_them_side_by_side(scheme: str, many: int, monkeypatch: pytest.MonkeyPatch):
    names = sorted(f"list/pool/judge/{content_key({'n': n})}" for n in range(many))
    with _lister(names) as (endpoint, seen), credentials():
        for name in ("AWS_ENDPOINT_URL", "GOOGLE_BASE_URL"):
            monkeypatch.setenv(name, endpoint)
        found = list(objects_at(f"{scheme}://{BUCKET}/list").list("pool/judge"))
    assert sorted(found) == [name.removeprefix("list/") for name in names]
    pages = -(-many // PAGE)
    assert seen.requests <= pages + 17  # of each range the last page is cut short
    assert seen.at_once >= (8 if pages > 2 else 1)


class _Seen:
    requests = 0
    open = 0
    at_once = 0


@contextmanager
def _lister(names: Sequence[str]) -> Iterator[tuple[str, _Seen]]:
    """A service that has these names, sorted, and takes its time for each page, as one far away does."""
    seen, lock = _Seen(), threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                seen.requests += 1
                seen.open += 1
                seen.at_once = max(seen.at_once, seen.open)
            time.sleep(LATENCY_S)
            asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            after = asked.get("continuation-token") or asked.get("start-after", "")
            begin = bisect_right(names, after)
            page = names[begin : begin + PAGE]
            body = _answer(page, page[-1] if begin + PAGE < len(names) else None).encode()
            with lock:
                seen.open -= 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


def _answer(page: Sequence[str], token: str | None) -> str:
    one = (
        "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>0</Size>"
        "<ETag>&quot;e&quot;</ETag></Contents>"
    )
    more = f"<NextContinuationToken>{escape(token)}</NextContinuationToken>" if token else ""
    found = "".join(one.format(escape(name)) for name in page)
    return (
        f"<ListBucketResult><IsTruncated>{'true' if token else 'false'}</IsTruncated>{more}{found}</ListBucketResult>"
    )
