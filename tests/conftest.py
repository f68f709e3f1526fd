"""One Ray token for all tests of a process: Ray reads it once, and every cluster a test starts must take the same."""

import os
import secrets
import tempfile
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Put the token where Ray looks for it, apart from the user's own."""
    folder = tempfile.TemporaryDirectory(prefix="metagen-token-")
    config.add_cleanup(folder.cleanup)
    token = Path(folder.name) / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
