"""The bearer token of the app: where it lies and how it is compared. Knows no HTTP.

Ray's own token does not cover Serve's port, so the ingress asks for a token of its own accord: the one of the
cluster where there is one. The token travels by file or by the environment of a node, never in a config, a
runtime_env or a log.
"""

import hmac
import os
import secrets
from pathlib import Path

from metagen_ray.errors import MachineError

TOKEN_ENV = "METAGEN_SERVE_TOKEN"


def default_token_file() -> Path:
    """The file of Ray's token on this machine, as Ray itself looks it up."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def environment_token() -> str | None:
    """The token that this node's environment brings, as a Kubernetes secret does."""
    return os.environ.get(TOKEN_ENV) or os.environ.get("RAY_AUTH_TOKEN")


def ensure_token_file(path: Path) -> Path:
    """Make sure that `path` holds a token only its owner reads; nothing is made where the environment brings one."""
    if environment_token():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return path
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    return path


def read_token(path: str | Path) -> str:
    """The token of this node: METAGEN_SERVE_TOKEN, RAY_AUTH_TOKEN, or the file. MachineError where there is none."""
    try:
        token = (environment_token() or Path(path).read_text(encoding="utf-8")).strip()
    except OSError as error:
        raise MachineError(
            f"no token for the app at {path} ({error.strerror}); write one there with mode 0600, or set {TOKEN_ENV}"
        ) from None
    if not token:
        raise MachineError(f"the token file {path} is empty; delete it to have a new token made")
    return token


def is_allowed(authorization: str | None, token: str) -> bool:
    """Whether an Authorization header carries the token; takes the same time for every wrong one."""
    scheme, _, given = (authorization or "").partition(" ")
    matches = hmac.compare_digest(given.strip().encode(), token.encode())
    return matches and scheme.lower() == "bearer"
