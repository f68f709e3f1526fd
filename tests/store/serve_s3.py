"""Moto's S3 on a free loopback port, which it prints. Runs in the environment of requirements-s3test.txt alone."""

from moto.server import DomainDispatcherApplication, create_backend_app  # pyright: ignore[reportMissingImports]
from werkzeug.serving import make_server  # pyright: ignore[reportMissingImports]

# One request at a time: moto looks and then writes, which is atomic, as S3 is, only without threads.
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
print(server.server_port, flush=True)
server.serve_forever()
