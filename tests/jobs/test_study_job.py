"""Jobs on a head that demands a token: followed, stopped, step by step, refused; and what outlives them."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from metagen_ray.errors import MachineError

pytestmark = [pytest.mark.slow, pytest.mark.machine, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SMALL = [
    "domains=4",
    "block_domains=4",
    "predict.samples=2",
    "object_sft.epochs=1",
    "analysis.resamples=100",
    "analysis.deals=5",
]


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
            end_session(process)


def end_session(process: subprocess.Popen) -> None:
    """End a session leader and all that it has started; asked to, Ray's processes take half a minute."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[3] == str(process.pid):
                os.kill(int(folder.name), signal.SIGKILL)
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


def metagen(env: dict[str, str], *arguments: str, limit_s: float = 420) -> subprocess.CompletedProcess:
    """The command line, from another place than the cluster's."""
    command = [sys.executable, "-m", "metagen_ray.cli", *arguments]
    env = {**env, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd="/tmp", env=env, capture_output=True, text=True, timeout=limit_s)


def study_in(store: Path, *settings: str) -> list[str]:
    return ["pocket", *(a for s in (*SMALL, f"store={store}", *settings) for a in ("--set", s))]


def submit_arguments(env: dict[str, str], store: Path, *settings: str) -> list[str]:
    chosen = study_in(store, *settings)
    return ["submit", "--address", env["RAY_API_SERVER_ADDRESS"], "--python", sys.executable, *chosen]


def step(env: dict[str, str], script: str, *arguments: str) -> subprocess.CompletedProcess:
    """One of jobs/, by Ray's own command and followed to its end."""
    command = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", sys.executable, f"jobs/{script}.py"]
    return subprocess.run([*command, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=420)


def kept(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in store.glob("pool/*/*")}


def test_submit_twice_is_one_job_that_stops_within_seconds_goes_on_step_by_step(head, tmp_path):
    arguments = submit_arguments(head, tmp_path)
    first = metagen(head, *arguments, "--no-follow")
    assert first.returncode == 0, first.stderr
    again = metagen(head, *arguments, "--no-follow")
    name = first.stdout.split()[1]
    assert first.stdout.startswith("submitted") and again.stdout.startswith(f"joined {name}")
    end = time.monotonic() + 240
    while not list(tmp_path.glob("pool/object_sft/*")) and time.monotonic() < end:
        time.sleep(1)
    # Ray sends SIGKILL 3 s after SIGTERM: a driver that says a last word has ended in order before that.
    subprocess.run([BIN / "ray", "job", "stop", name], env=head, check=True, capture_output=True)
    (run,) = [path.name for path in (tmp_path / "studies").iterdir()]
    assert "ended: Terminated" in metagen(head, "status", run, "--store", str(tmp_path)).stdout
    assert not list(tmp_path.glob("tmp/*.tmp"))
    stopped = kept(tmp_path)
    chosen = study_in(tmp_path)
    early = step(head, "meta_sft", *chosen)
    assert early.returncode != 0 and re.search(r"step meta_sft waits for \d+ shards of ", early.stdout)
    for script in ("object_sft", "ground_truth", "meta_sft"):
        done = step(head, script, *chosen)
        assert done.returncode == 0, done.stdout[-3000:]
        assert not list(tmp_path.glob("studies/*/report/index.html"))
    assert stopped.items() <= kept(tmp_path).items()
    done = metagen(head, *arguments)  # what is left, the evaluation
    # Numbered on from every job of the same fingerprint that this head has seen, those of other stores too.
    assert done.returncode == 0 and done.stdout.split()[0] == "submitted", done.stdout[-3000:] + done.stderr[-2000:]
    assert done.stdout.split()[1] != name and "report: " in done.stdout
    assert ": finished (last word" in step(head, "status", run, "--store", str(tmp_path)).stdout
    assert step(head, "evaluate", *chosen).returncode == 0
    told = metagen(head, "status", "pocket", "--store", str(tmp_path))
    assert "no driver has written here" in told.stdout  # the preset itself is another run


def test_submit_gives_back_the_exit_code_of_a_study_that_fails(head, tmp_path):
    failed = metagen(head, *submit_arguments(head, tmp_path, "resources.gpus_per_worker=8"))
    assert failed.returncode == MachineError.exit_code, failed.stdout[-3000:] + failed.stderr[-2000:]
    assert "the plan needs 8 GPUs, the cluster has 0" in failed.stdout


def test_doctor_and_serve_and_down_on_a_real_head(head, tmp_path):
    chosen = study_in(tmp_path)
    told = step(head, "doctor", *chosen, "--json")
    assert told.returncode == 0, told.stdout[-3000:]
    assert '"token": "private"' in told.stdout and '"findings": []' in told.stdout
    up = step(head, "serve", *chosen)
    assert up.returncode == 0 and " serves " in up.stdout, up.stdout[-3000:]
    down = step(head, "down")
    assert down.returncode == 0 and "app: ended" in down.stdout, down.stdout[-3000:]
    assert "nothing of metagen was left" in step(head, "down").stdout


def test_job_without_token_is_refused(head, tmp_path):
    bare = {k: v for k, v in head.items() if not k.startswith("RAY_AUTH")}
    bare |= {"RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    assert step(bare, "study", *study_in(tmp_path)).returncode != 0
    refused = metagen(bare, *submit_arguments(bare, tmp_path))
    assert refused.returncode == 4 and "oken" in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
    assert not list(tmp_path.glob("studies/*"))
