"""Opening a store: what an address means, and one clear line for each that cannot be used."""

import json
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metagen_ray.errors import StoreError
from metagen_ray.store import FORMAT, open_store
from metagen_ray.store.disk import DiskObjects
from metagen_ray.store.store import objects_at
from tests.store.s3_server import BUCKET, CREDENTIALS, s3_server


def _refusal(root: str, **options: bool) -> str:
    with pytest.raises(StoreError) as caught:
        open_store(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in message
    return message


def test_open_writes_the_format_once(root: str):
    open_store(root)
    objects = objects_at(root)
    written = objects.read_dated("metagen.json")
    open_store(root)
    assert objects.read_dated("metagen.json") == written
    assert written is not None
    assert json.loads(written[0]) == {"format": FORMAT}


def test_open_another_format_is_refused_by_number(root: str):
    objects_at(root).create("metagen.json", b'{"format": 99}')
    assert "format 99" in _refusal(root)


@pytest.mark.parametrize("written", [b"", b"{", b"[]", b'{"version": 1}', b"\xff"])
def test_open_damaged_format_is_refused(tmp_path: Path, written: bytes):
    (tmp_path / "metagen.json").write_bytes(written)
    assert str(tmp_path / "metagen.json") in _refusal(str(tmp_path))


def test_open_read_only_writes_nothing(root: str, tmp_path: Path):
    assert "no store" in _refusal(root, read_only=True)
    assert list(objects_at(root).list("")) == []
    open_store(root)
    assert open_store(root, read_only=True).keys("judge") == set()


def test_open_relative_folder_holds_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("runs/")
    monkeypatch.chdir("/")
    store.write_doc("studies/a/b", b"1")
    assert store.root == str(tmp_path / "runs")
    assert (tmp_path / "runs/studies/a/b").exists()


@pytest.mark.parametrize(
    ("root", "part"),
    [
        ("", "empty"),
        ("s3:/bucket/x", "s3://BUCKET"),
        ("ftp://host/x", "ftp:"),
        ("az://container/x", "az:"),
        ("https://user:hunter2@host/x", "https:"),
        ("s3://", "bucket name"),
        ("s3:///prefix", "bucket name"),
        ("s3://UPPER case/x", "bucket name"),
        ("s3://key:hunter2@bucket/x", "environment"),
        ("s3://bucket/x?endpont=http://h", "'endpoint'"),
        ("s3://bucket/x?secret_access_key=hunter2", "unknown option"),
        ("s3://bucket/x?endpoint=http://me:hunter2@h", "environment"),
        ("gs://bucket/x?region=eu", "unknown option"),
        ("gs://bucket/x?endpoint=https://elsewhere.example", "unknown option"),
    ],
)
def test_open_address_that_means_nothing_is_refused_without_its_secrets(root: str, part: str):
    message = _refusal(root)
    assert part in message
    assert "hunter2" not in message


def test_open_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    assert "a file stands where a folder" in _refusal(str(tmp_path / "file"))
    assert "a file stands where a folder" in _refusal(str(tmp_path / "file" / "below"))


def test_open_folder_without_rights_is_refused(tmp_path: Path):
    code = """if True:
        import os, tempfile
        from metagen_ray.errors import StoreError
        from metagen_ray.store import open_store
        folder = tempfile.mkdtemp()
        os.chmod(folder, 0o555)
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            open_store(folder)
        except StoreError as error:
            print(error, os.listdir(folder))
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "permission denied; choose a store" in done.stdout, done.stderr
    assert done.stdout.rstrip().endswith("[]")


def test_open_sweeps_old_leftovers_alone(tmp_path: Path):
    open_store(str(tmp_path))
    old, young = tmp_path / "tmp" / "old", tmp_path / "tmp" / "young"
    old.touch()
    young.touch()
    long_ago = time.time() - 90_000
    os.utime(old, (long_ago, long_ago))
    open_store(str(tmp_path))
    assert not old.exists()
    assert young.exists()


@pytest.mark.slow
def test_list_of_100_000_shards_on_disk_takes_under_two_cpu_seconds(tmp_path: Path):
    folder = tmp_path / "pool" / "judge"
    folder.mkdir(parents=True)
    for n in range(100_000):
        os.close(os.open(folder / f"{n:064x}", os.O_CREAT))
    store = open_store(str(tmp_path))
    started = time.process_time()
    assert len(store.keys("judge")) == 100_000
    assert time.process_time() - started < 2


def test_list_of_a_folder_goes_below_it(tmp_path: Path):
    objects = DiskObjects(tmp_path)
    for path in ("a/b/c", "a/d", "e"):
        objects.replace(path, b"")
    assert sorted(objects.list("a")) == ["a/b/c", "a/d"]


def test_s3_missing_bucket_is_named(s3_endpoint: str):
    message = _refusal(f"s3://no-such-bucket/x?endpoint={s3_endpoint}")
    assert "no such bucket" in message
    assert "s3://no-such-bucket/x" in message


def test_s3_wrong_credentials_are_named(moto_python: Path, s3_endpoint: str, tmp_path: Path):
    with s3_server(moto_python, tmp_path / "log", INITIAL_NO_AUTH_ACTION_COUNT="0") as endpoint:
        message = _refusal(f"s3://{BUCKET}/x?endpoint={endpoint}")
        listing = objects_at(f"s3://{BUCKET}/x?endpoint={endpoint}").list("pool")
        with pytest.raises(StoreError, match="access denied"):
            list(listing)
    assert "access denied; check AWS_ACCESS_KEY_ID" in message


def test_s3_options_come_from_the_environment_too(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    store = open_store(f"s3://{BUCKET}/from-environment")
    store.write_doc("studies/a/b", b"1")
    assert open_store(f"s3://{BUCKET}/from-environment?endpoint={s3_endpoint}").read_doc("studies/a/b") == b"1"


def test_s3_plain_http_can_be_forbidden(s3_endpoint: str):
    assert "store s3://" in _refusal(f"s3://{BUCKET}/x?endpoint={s3_endpoint}&allow_http=false")


def test_s3_secrets_stay_out_of_what_travels(s3_endpoint: str):
    store = open_store(f"s3://{BUCKET}/travels?endpoint={s3_endpoint}")
    secret = CREDENTIALS["AWS_SECRET_ACCESS_KEY"]
    assert secret not in store.root + repr(store) + repr(vars(store))
    assert secret.encode() not in pickle.dumps(store)


def test_s3_nobody_answers_is_said_within_seconds(s3_endpoint: str):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        started = time.monotonic()
        message = _refusal(f"s3://{BUCKET}/x?endpoint=http://127.0.0.1:{free.getsockname()[1]}")
    assert time.monotonic() - started < 20
    assert "check the address" in message
