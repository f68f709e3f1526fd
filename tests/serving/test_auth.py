import socket
import stat
from pathlib import Path

import pytest

from metagen_ray.errors import InputError, MachineError
from metagen_ray.serving.app import ServingSpec, deploy
from metagen_ray.serving.auth import ensure_token_file, is_allowed, read_token

SPEC = ServingSpec(model_dir="unused", model_name="tiny", store="unused")


def test_token_file_is_not_made_where_the_environment_brings_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert not ensure_token_file(tmp_path / "token").exists()
    assert read_token(tmp_path / "token") == "given"


def test_token_file_is_made_once_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    path = ensure_token_file(tmp_path / "deep" / "token")
    first = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(first) == 64
    path.chmod(0o644)
    assert ensure_token_file(path).read_text() == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_token_environment_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = ensure_token_file(tmp_path / "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert read_token(path) == path.read_text()
    monkeypatch.setenv("METAGEN_SERVE_TOKEN", "other\n")
    assert read_token(path) == "other"


def test_token_missing_or_empty_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with pytest.raises(MachineError, match="METAGEN_SERVE_TOKEN"):
        read_token(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(MachineError, match="empty"):
        read_token(tmp_path / "empty")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "secret",
        "Basic secret",
        "Bearer secre",
        "Bearer secret2",
        "Bearer sécret",
    ],
)
def test_authorization_without_the_token_is_refused(header: str | None):
    assert not is_allowed(header, "secret")


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "Bearer  secret "])
def test_authorization_with_the_token_is_allowed(header: str):
    assert is_allowed(header, "secret")


def test_deploy_on_a_taken_port_says_so_and_starts_nothing(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        spec = ServingSpec(**{**vars(SPEC), "port": taken.getsockname()[1]})
        with pytest.raises(MachineError, match="taken; give another"):
            deploy(spec, tmp_path / "token")


def test_deploy_a_name_with_a_colon_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="colon"):
        deploy(ServingSpec(**{**vars(SPEC), "model_name": "a:b"}), tmp_path / "token")
