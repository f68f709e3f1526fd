"""The command line: one line per error, on stderr, with its exit code, and nothing half-written."""

import subprocess
import sys

import pytest

from metagen_ray.cli import main

CRASHES_IN_ITS_DESTRUCTORS = """
import ctypes
import sys
c = ctypes.CDLL(None)
c.__cxa_atexit(ctypes.cast(c.abort, ctypes.c_void_p), None, None)
from metagen_ray import cli, commands
def command(options):
    import atexit
    atexit.register(print, "what a library does at the end is done")
    return int(sys.argv[1])
commands.plan = command
cli.run(["plan", "pocket"])
"""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan", "pokcet"], 2, "did you mean 'pocket'"),
        (["plan", "pocket", "--set", "contxt.k=3"], 2, "did you mean 'context'"),
        (["plan", "pocket", "--set", "domains=3"], 2, "domains"),
        (["plan", "pocket", "--set", "suite=pocket_advise"], 2, "did you mean 'pocket_advice'"),
        (["plan", "pocket", "--set", "model=/no/such"], 2, "no such directory"),
        (["plan", "nowhere.yaml"], 2, "cannot read"),
        (["plan", "pocket", "--cost", "--gpu", "H20"], 2, "did you mean 'H200'"),
        (["plan", "pocket", "--gpu", "H100"], 2, "add --cost"),
        (["plan", "pocket", "--cost", "--prefill-utilisation", "0"], 2, "above 0 and at most 1"),
        (["lab", "pretrain", "unused", "--rho", "2"], 2, "between 0 and 1"),
    ],
)
def test_cli_wrong_input_is_one_line(arguments, code, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_cli_store_that_is_a_file_exits_3(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["plan", "pocket", "--set", f"store={tmp_path / 'file'}"]) == 3
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("study", "code"), [("pocket", 141), ("nowhere.yaml", 2)])
def test_cli_output_that_nobody_reads_is_no_failure_of_ours(study, code, tmp_path):
    command = [sys.executable, "-m", "metagen_ray.cli", "plan", study, "--set", f"store={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == code and "Traceback" not in said and "Exception ignored" not in said


def test_cli_unknown_command_exits_2():
    with pytest.raises(SystemExit) as stop:
        main(["paln", "pocket"])
    assert stop.value.code == 2


@pytest.mark.parametrize("code", [0, 5])
def test_cli_a_library_that_crashes_at_the_end_changes_no_exit_code(code):
    command = [sys.executable, "-c", CRASHES_IN_ITS_DESTRUCTORS, str(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "what a library does at the end is done\n", "")
