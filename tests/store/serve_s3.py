"""Moto's S3 on a port, which it prints. Runs in the environment of requirements-s3test.txt alone.

`serve_s3.py HOST PORT FAULTS` also serves the port after it, where requests fail as the file FAULTS says: `500` or
`503` is the status of every answer, `slow` holds every request for a while; without the file nothing fails.
"""

import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote

from moto.server import DomainDispatcherApplication, create_backend_app  # pyright: ignore[reportMissingImports]
from werkzeug.serving import make_server  # pyright: ignore[reportMissingImports]

SLOW_S = 5

host, port, faults = sys.argv[1:] or ("127.0.0.1", "0", "")
moto = DomainDispatcherApplication(create_backend_app)
one_at_a_time = threading.Lock()  # moto looks and then writes, which is atomic, as S3 is, only without threads


def served(environ, start_response):
    """The answer of moto; to a client of GCS too, whose XML interface is that of S3 but for the condition of a put."""
    if environ.get("HTTP_AUTHORIZATION", "").startswith("Bearer "):
        path, mark, query = environ["RAW_URI"].partition("?")
        environ["RAW_URI"] = environ["REQUEST_URI"] = unquote(path) + mark + query  # "-" and "/" come encoded
        if environ.get("HTTP_X_GOOG_IF_GENERATION_MATCH") == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"
    with one_at_a_time:
        return moto(environ, start_response)


def failing(environ, start_response):
    """The answer of a service that has trouble."""
    file = Path(faults)
    trouble = file.read_text().strip() if file.exists() else ""
    if trouble == "slow":
        time.sleep(SLOW_S)
    elif trouble:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(f"{trouble} Trouble", [("Content-Length", "0")])
        return []
    return served(environ, start_response)


server = make_server(host, int(port), served, threaded=True)
if faults:
    troubled = make_server(host, server.server_port + 1, failing, threaded=True)
    threading.Thread(target=troubled.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
server.serve_forever()
