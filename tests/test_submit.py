"""Submitting to a scripted job API: names, joining, a log whose stream breaks, exit codes. A real head: tests/jobs."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from metagen_ray import submit as submitting
from metagen_ray.errors import InputError, MachineError
from metagen_ray.study import Study, load_study
from metagen_ray.submit import RUN, exit_code, parse_env, submit


class Head:
    """A job API that plays a script: each tail is a list of chunks, or ends in an exception."""

    def __init__(self, jobs: list[Any] = [], tails: list[list[Any]] = [], ends: Any = None) -> None:  # noqa: B006
        self.jobs, self.tails, self.submitted = list(jobs), list(tails), []
        self.ends = ends or SimpleNamespace(status=JobStatus.SUCCEEDED, driver_exit_code=0)

    def list_jobs(self) -> list[Any]:
        return self.jobs

    def submit_job(self, **given: Any) -> None:
        self.submitted.append(given)

    def get_job_info(self, name: str) -> Any:
        running = SimpleNamespace(status=JobStatus.RUNNING, driver_exit_code=None)
        return running if self.tails else self.ends

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for chunk in self.tails.pop(0):
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


@pytest.fixture
def study() -> Study:
    return load_study("pocket", ["store=/shared/runs"])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "RETRY_S", (0.0,))


def played(head: Head, study: Study, monkeypatch: pytest.MonkeyPatch, **more: Any) -> int:
    monkeypatch.setattr(submitting, "connect", lambda address: head)
    return submit(study, "http://head:8265", **more)


def job(study: Study, status: JobStatus, name: str = "metagen-x") -> Any:
    return SimpleNamespace(submission_id=name, status=status, metadata={RUN: study.run_name()})


def test_submit_a_log_that_breaks_is_printed_once_and_whole(study, monkeypatch, capsys):
    tails = [["one\n", "two\n", ConnectionError("gone")], [RuntimeError("1006")], ["one\ntw", "o\nthree\n"]]
    assert played(Head(tails=tails), study, monkeypatch) == 0
    assert capsys.readouterr().out.endswith("one\ntwo\nthree\n")


def test_submit_a_head_that_stays_silent_is_given_up_with_what_to_do(study, monkeypatch):
    monkeypatch.setattr(submitting, "LOST_S", 0.0)
    with pytest.raises(MachineError, match="submit again to follow"):
        played(Head(tails=[[ConnectionError("gone")]] * 3), study, monkeypatch)


def test_submit_ends_where_nobody_reads_the_log_any_more(study, monkeypatch):
    def write(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(submitting, "sys", SimpleNamespace(stdout=SimpleNamespace(write=write)))
    with pytest.raises(BrokenPipeError):
        played(Head(tails=[["one\n"]] * 3), study, monkeypatch)


def test_submit_a_log_that_was_silent_for_long_and_then_breaks_is_taken_up(study, monkeypatch, capsys):
    now = iter(range(0, 10_000, 500))  # each look at the clock is 500 s later
    monkeypatch.setattr(submitting, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    tails = [["one\n"], [ConnectionError("gone")], ["one\n"], [ConnectionError("gone")], ["one\ntwo\n"]]
    assert played(Head(tails=tails), study, monkeypatch) == 0
    assert capsys.readouterr().out.endswith("one\ntwo\n")


def test_submit_takes_the_next_name_where_somebody_else_has_it(study, monkeypatch):
    head = Head()
    taken, given = {f"metagen-{study.run_name()}", f"metagen-{study.run_name()}-2"}, []

    def refuse_taken(**job: Any) -> None:
        given.append(job["submission_id"])
        if job["submission_id"] in taken:
            raise RuntimeError(f"Job with submission_id {job['submission_id']} already exists")

    monkeypatch.setattr(head, "submit_job", refuse_taken)
    assert played(head, study, monkeypatch, follow=False) == 0
    assert given == [f"metagen-{study.run_name()}{end}" for end in ("", "-2", "-3")]


def test_submit_is_one_job_for_one_study(study, monkeypatch):
    other = SimpleNamespace(submission_id="raysubmit_1", status=JobStatus.RUNNING, metadata=None)
    head = Head([other, job(study, JobStatus.FAILED)], [["done\n"]])
    assert played(head, study, monkeypatch) == 0
    (given,) = head.submitted
    assert given["submission_id"] == f"metagen-{study.run_name()}-2" and given["metadata"][RUN] == study.run_name()
    head = Head([job(study, JobStatus.RUNNING)], [["done\n"]])
    assert played(head, study, monkeypatch) == 0 and not head.submitted


def test_submit_sends_the_study_and_nothing_else(study, monkeypatch):
    from pathlib import Path

    sent = {}

    def look(**given: Any) -> None:
        folder = Path(given["runtime_env"]["working_dir"])
        sent.update({path.name: path.read_text() for path in folder.iterdir()}, env=given["runtime_env"]["env_vars"])

    head = Head()
    monkeypatch.setattr(head, "submit_job", look)
    assert played(head, study, monkeypatch, follow=False) == 0
    assert set(sent) == {"study.yaml", "env"} and sent["env"] == {}
    assert load_study_text(sent["study.yaml"]).fingerprint() == study.fingerprint()


def load_study_text(text: str) -> Study:
    from metagen_ray.study import parse_yaml, study_from

    return study_from(parse_yaml(text, "sent"), "sent")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 5, 5),
        (JobStatus.FAILED, 7, 7),
        (JobStatus.FAILED, None, 1),
        (JobStatus.FAILED, -9, 1),
        (JobStatus.FAILED, 137, 1),
        (JobStatus.STOPPED, None, 130),
    ],
)
def test_exit_code_is_the_drivers(status, code, expected):
    assert exit_code(SimpleNamespace(status=status, driver_exit_code=code)) == expected


@pytest.mark.parametrize("setting", ["store=runs", "store=~/runs", "store=./x", "model=models/qwen"])
def test_submit_what_the_cluster_cannot_see_is_refused(setting):
    given = ["store=/shared", setting] if setting.startswith("model") else [setting]
    with pytest.raises(InputError, match="folder of this machine"):
        submit(load_study("pocket", given), "http://127.0.0.1:1")


def test_submit_to_nobody_is_a_machine_error(study):
    with pytest.raises(MachineError, match="no head at"):
        submit(study, "http://127.0.0.1:9")


@pytest.mark.parametrize("pair", ["AWS_SECRET_ACCESS_KEY=x", "HF_TOKEN=x", "db_password=x", "API_KEY=1", "KEY=2"])
def test_env_that_looks_like_a_secret_is_refused(pair):
    with pytest.raises(InputError, match="shown to whoever") as refused:
        parse_env([pair])
    assert "=x" not in str(refused.value)


@pytest.mark.parametrize("pair", ["", "A", "=x", "A B=1", "1A=2"])
def test_env_that_is_no_pair_is_refused(pair):
    with pytest.raises(InputError, match="KEY=VALUE"):
        parse_env([pair])


def test_env_pairs_are_read():
    assert parse_env(["AWS_REGION=eu-1", "A=b=c", "MONKEY=1"]) == {"AWS_REGION": "eu-1", "A": "b=c", "MONKEY": "1"}
