"""Handing a study to a cluster as a Ray job, and following it. Owns the job's name, folder and log; runs no stage.

A job is named after its run, and a run after its study's fingerprint: the same study submitted twice is one job.
Nothing travels but the resolved study (and, if wished, this package); no token and no credential does.
"""

import asyncio
import itertools
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metagen_ray
from metagen_ray.errors import InputError, MachineError
from metagen_ray.progress import say
from metagen_ray.study import Study

RUN = "metagen_run"  # the metadata by which a run's jobs are found
LOST_S = 600.0  # without a word from the head for so long, following ends
NAMES = 100  # that somebody else may have taken
RETRY_S = (0.5, 1, 2, 5)
STOPPED = 130
SECRET = re.compile(r"token|secret|password|credential|private|(?:^|_)key(?:$|_)", re.IGNORECASE)
SHARED = ("s3://", "gs://", "/")


@dataclass(frozen=True)
class Job:
    """How the job is started on the cluster."""

    python: str = "python"
    ship_code: bool = False
    env: Mapping[str, str] | None = None


def submit(study: Study, address: str, job: Job = Job(), follow: bool = True) -> int:
    """Submit the study, or join the job that runs it already; the driver's exit code, 0 without `follow`.

    InputError where the cluster could not see the study's files, MachineError where the head cannot be reached.
    """
    _check_places(study)
    client = connect(address)
    name, joined = _submitted(client, study, job)
    say(f"{'joined' if joined else 'submitted'} {name} at {address}")
    if not follow:
        return 0
    try:
        return exit_code(asyncio.run(_print_log(client, name)))
    except KeyboardInterrupt:
        say(f"{name} goes on; follow it with the same command, end it with `ray job stop {name}`")
        return STOPPED


def connect(address: str) -> Any:
    """A client of the head's job API; MachineError where it cannot be reached, or refuses the token."""
    import ray.exceptions
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError as error:
        raise MachineError(
            f"{address} refused the token: {_line(error)}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise MachineError(f"no head at {address}: {_line(error)}; check the address and the port (8265)") from None


def exit_code(info: Any) -> int:
    """The driver's exit code; 130 where the job was stopped, 1 where it ended without one."""
    status = str(info.status)
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return STOPPED
    code = info.driver_exit_code
    return code if isinstance(code, int) and 0 < code < 126 else 1


def parse_env(given: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE pairs; InputError for what is none, and for what looks like a secret: everybody would be shown it."""
    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InputError(f"--env {pair!r}: write KEY=VALUE")
        if SECRET.search(name):
            raise InputError(
                f"--env {name}: a job's environment is shown to whoever reaches the dashboard; give the nodes a role, "
                "or mount the secret as a file"
            )
        found[name] = value
    return found


def _check_places(study: Study) -> None:
    if not study.store.startswith(SHARED):
        raise InputError(
            f"store {study.store!r} is a folder of this machine; a job needs s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or "
            "an absolute path that all nodes share (--set store=...)"
        )
    if not study.model.startswith(("lab:", "/")):
        raise InputError(
            f"model {study.model!r} is a folder of this machine; a job needs an absolute path that all nodes share, or "
            "lab:NAME"
        )


def _submitted(client: Any, study: Study, job: Job) -> tuple[str, bool]:
    """The job's name, and whether it was there already."""
    run = study.run_name()
    with tempfile.TemporaryDirectory(prefix="metagen-submit-") as folder:
        (Path(folder) / "study.yaml").write_text(study.to_yaml(), encoding="utf-8")
        runtime_env: dict[str, Any] = {"working_dir": folder, "env_vars": dict(job.env or {})}
        if job.ship_code:
            runtime_env["py_modules"] = [str(Path(metagen_ray.__file__).parent)]
        earlier, alive = _jobs_of(client, run)
        for number in itertools.count(earlier + 1):
            if alive:
                return alive, True
            name = f"metagen-{run}" + (f"-{number}" if number > 1 else "")
            try:
                client.submit_job(
                    entrypoint=f"{job.python} -m metagen_ray.cli run study.yaml",
                    submission_id=name,
                    runtime_env=runtime_env,
                    metadata={RUN: run, "fingerprint": study.fingerprint()},
                )
                return name, False
            except RuntimeError as error:
                if "already exists" not in str(error) or number > earlier + NAMES:
                    raise MachineError(f"the head takes no job: {_line(error)}") from None
            _, alive = _jobs_of(client, run)  # another was faster, or the name is somebody else's
    raise AssertionError("names do not end")


def _jobs_of(client: Any, run: str) -> tuple[int, str]:
    """How many jobs a run has had, and the one that is alive, or ""."""
    jobs = [j for j in client.list_jobs() if (j.metadata or {}).get(RUN) == run]
    return len(jobs), next((j.submission_id for j in jobs if not j.status.is_terminal()), "")


async def _print_log(client: Any, name: str) -> Any:
    """Print the job's log to its end, from where it was when the stream broke; returns how the job ended."""
    printed, attempt = 0, 0
    lost: float | None = None  # since when nothing comes from the head
    while True:
        seen = 0
        try:
            async for chunk in _tail(client, name):
                fresh = chunk[max(0, printed - seen) :]
                seen += len(chunk)
                printed = max(printed, seen)
                sys.stdout.write(fresh)
                sys.stdout.flush()
                lost, attempt = None, 0
            info, lost = client.get_job_info(name), None
            if info.status.is_terminal():
                return info
        except BrokenPipeError:  # nobody reads what is printed here; no word of the head's is one
            raise
        except (RuntimeError, ConnectionError, OSError, TimeoutError) as error:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > LOST_S:
                raise MachineError(
                    f"no word of {name} for {LOST_S:.0f} s ({_line(error)}); it may still run: submit again to follow"
                ) from None
        await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
        attempt += 1


async def _tail(client: Any, name: str) -> AsyncIterator[str]:
    """The log from its beginning; whatever breaks the stream is a ConnectionError."""
    import aiohttp

    try:
        async for chunk in client.tail_job_logs(name):
            yield chunk
    except aiohttp.ClientError as error:
        raise ConnectionError(str(error)) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
