"""Shared by all tests: a Ray token, which Ray reads once a process and every cluster must take."""

import os
import secrets
import tempfile
from pathlib import Path

import pytest

from metagen_ray.ending import leave_without_destructors

sessions: list[pytest.Session] = []
leave_without_destructors(lambda: int(sessions[0].exitstatus) if sessions else None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the session, whose exit status the process shall end with though tests have had Ray in it."""
    sessions.append(session)


def pytest_configure(config: pytest.Config) -> None:
    """Put the token where Ray looks for it, apart from the user's own; share the cores with other pytest workers."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # torch's threads wait in a busy loop for one that has lost its core
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = tempfile.TemporaryDirectory(prefix="metagen-token-")
    config.add_cleanup(folder.cleanup)
    token = Path(folder.name) / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
