"""`ray job submit` against a head that demands a token: the study succeeds, and a failing stage fails the job."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SMALL = ["domains=4", "block_domains=4", "predict.samples=2", "analysis.resamples=100"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head():
    """A head on loopback with a token of its own; ended by the ids of its own session, never by `ray stop`."""
    with tempfile.TemporaryDirectory(prefix="mj") as folder:
        token = Path(folder) / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        env = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        gcs, dashboard = free_port(), free_port()
        command = [
            BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}", "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}/r",
            f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}",
        ]  # fmt: skip
        with open(f"{folder}/head.log", "wb") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        try:
            _wait_ready(env, process)
            yield env
        finally:
            process.terminate()
            process.wait(60)


def _wait_ready(env: dict[str, str], process: subprocess.Popen) -> None:
    """Until a job that does nothing succeeds: the agent that starts jobs comes up last."""
    end, done = time.monotonic() + 120, None
    while time.monotonic() < end:
        assert process.poll() is None, "the head ended"
        done = subprocess.run([BIN / "ray", "job", "submit", "--", "true"], env=env, capture_output=True, text=True)
        if done.returncode == 0:
            return
    raise AssertionError(f"the head takes no jobs: {done and done.stderr[-2000:]}")


def submit(env: dict[str, str], store: Path, *settings: str) -> subprocess.CompletedProcess:
    arguments = [a for s in (*SMALL, f"store={store}", *settings) for a in ("--set", s)]
    command = [
        BIN / "ray",
        "job",
        "submit",
        "--working-dir",
        ".",
        "--",
        sys.executable,
        "jobs/study.py",
        "pocket",
        *arguments,
    ]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=420)


def test_job_with_token_succeeds(head, tmp_path):
    done = submit(head, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout
    assert list(tmp_path.glob("studies/*/report/index.html"))


def test_job_whose_stage_fails_exits_non_zero(head, tmp_path):
    done = submit(head, tmp_path, "judge.min_mass=0.9999999", "judge.max_unscored=0")
    assert done.returncode != 0
    assert "produced no number" in done.stdout


def test_job_without_token_is_refused(head, tmp_path):
    bare = {k: v for k, v in head.items() if not k.startswith("RAY_AUTH")}
    bare |= {"RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    done = submit(bare, tmp_path)
    assert done.returncode != 0
    assert not list(tmp_path.glob("studies/*"))
