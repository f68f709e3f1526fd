"""A real S3 server for tests: moto, installed once per machine in an environment of its own, started on loopback."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = Path(__file__).parents[2] / "docker" / "requirements-s3test.txt"
BUCKET = "metagen-tests"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-id",
    "AWS_SECRET_ACCESS_KEY": "test-secret-5b1f",
    "AWS_DEFAULT_REGION": "us-east-1",
    "GOOGLE_BEARER_TOKEN": "test-token-77c2",
}


@contextmanager
def credentials() -> Iterator[None]:
    """What the server takes, in this process' environment."""
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def s3_python() -> Path:
    """Python of the cached environment, made from the lock if absent; CalledProcessError if pip cannot."""
    text = LOCK.read_text()
    version = re.search(r"^moto==(\S+)$", text, re.MULTILINE)
    assert version is not None, f"{LOCK} pins no moto"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "metagen-tests"
    folder = cache / f"moto-{version[1]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    python, complete = folder / "bin" / "python", folder / "complete"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder, python)
            complete.touch()
    return python


def _install(folder: Path, python: Path) -> None:
    # Without a pip of its own, which would take longer to unpack than all the rest.
    for command in (
        ["venv", "--without-pip", folder],
        ["pip", "-q", "--disable-pip-version-check", "--python", python, "install", "--no-deps", "-r", LOCK],
    ):
        subprocess.run([sys.executable, "-m", *command], check=True, timeout=270, capture_output=True, text=True)


@contextmanager
def s3_server(python: Path, log: Path, **environment: str) -> Iterator[str]:
    """The endpoint of a fresh, empty server, which ends with the block."""
    command = [python, Path(__file__).with_name("serve_s3.py")]
    with (
        open(log, "w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **environment}
        ) as server,
    ):
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            assert port, f"the S3 server did not start: {log.read_text()[-2000:]}"
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def make_bucket(endpoint: str, name: str = BUCKET) -> None:
    """An empty bucket."""
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 200
