"""Folders of killed processes go, those of living ones stay."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metagen_ray.scratch import Scratch, sweep

HOLD = """
import sys
from metagen_ray.scratch import Scratch
scratch = Scratch("test")
print(scratch.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder() -> Iterator[Callable[[], tuple[subprocess.Popen[str], Path]]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> tuple[subprocess.Popen[str], Path]:
        command = [sys.executable, "-c", HOLD]
        process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        (folder / "adapter").write_bytes(b"weights")
        return process, folder

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _age(folder: Path, seconds: float) -> None:
    written = folder.stat().st_mtime
    os.utime(folder, (written - seconds, written - seconds))


def test_folder_of_a_killed_process_is_removed_by_the_next_one(holder: Callable):
    process, folder = holder()
    _age(folder, 100)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.is_dir()
    with Scratch("test") as mine:
        assert not folder.exists()
        assert Path(mine).is_dir()


def test_folder_of_a_living_process_stays_whatever_its_age(holder: Callable):
    process, folder = holder()
    _age(folder, 1e6)
    sweep()
    assert (folder / "adapter").read_bytes() == b"weights"
    process.communicate("")
    assert not folder.exists()


def test_folder_of_a_moment_ago_stays_though_nobody_holds_it(room: Path):
    young = room / "metagen-scratch-test-young"
    young.mkdir()
    sweep()
    assert young.is_dir()
    _age(young, 100)
    sweep()
    assert not young.exists()


def test_folders_of_others_and_links_stay(room: Path):
    other, kept = room / "somebody-else", room / "kept"
    for folder in (other, kept):
        folder.mkdir()
        _age(folder, 1e6)
    (room / "metagen-scratch-test-link").symlink_to(kept)
    sweep()
    assert other.is_dir()
    assert kept.is_dir()


def test_folder_ends_with_its_block_and_holds_no_file_open():
    before = len(os.listdir("/proc/self/fd"))
    with Scratch("test") as mine:
        Path(mine, "file").touch()
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert not Path(mine).exists()
    assert len(os.listdir("/proc/self/fd")) == before
