"""What a store promises, on disk and on S3 alike."""

import hashlib
import json
import os
import pickle
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from metagen_ray.errors import StoreError
from metagen_ray.store import Store, content_key, open_store
from metagen_ray.store.store import objects_at

TABLE = pa.table({"domain": ["a", "b"], "score": [0.5, None]})
KEY = content_key({"n": 0})
FILES = {
    "adapter_config.json": b'{"r": 8}',
    "adapter_model.safetensors": os.urandom(70_000),
    "sub/empty.txt": b"",
}


def test_shard_put_and_read_give_table_and_record(store: Store):
    assert store.put_shard("judge", KEY, TABLE, {"seed": 4, "inputs": ["x"]})
    table, record = store.read_shard("judge", KEY)
    assert table.equals(TABLE)
    assert (record["seed"], record["inputs"], record["rows"], len(record["digest"])) == (4, ["x"], 2, 64)
    age = datetime.now(UTC) - datetime.fromisoformat(record["created"])
    assert timedelta(0) <= age < timedelta(minutes=1)
    assert store.record("judge", KEY) == record
    store.verify("judge", KEY)


def test_shard_second_put_changes_nothing(store: Store):
    assert store.put_shard("judge", KEY, TABLE, {"by": "first"})
    assert not store.put_shard("judge", KEY, TABLE.slice(1), {"by": "second"})
    table, record = store.read_shard("judge", KEY)
    assert table.equals(TABLE)
    assert record["by"] == "first"


def test_shard_of_any_size_has_its_record_at_hand(store: Store):
    long = pa.table({f"column_{i:04d}": [i] for i in range(1200)})  # a footer beyond the tail that is read
    store.put_shard("wide", KEY, long, {"seed": 1})
    big = pa.table({"noise": [os.urandom(3_000_000)]})
    store.put_shard("big", KEY, big, {"seed": 2})
    assert store.record("wide", KEY)["seed"] == 1
    assert store.record("big", KEY)["seed"] == 2
    assert store.read_shard("big", KEY)[0].equals(big)


def test_marks_are_listed_by_label_and_may_be_put_twice(store: Store):
    one, two, other = (content_key({"n": n}) for n in range(1, 4))
    assert store.marked("judge") == {}
    for label, key in ((one, KEY), (one, KEY), (one, two), (two, other)):
        store.mark("judge", label, key)
    assert store.marked("judge") == {one: {KEY, two}, two: {other}}
    assert store.marked("predict") == {} and store.keys("judge") == set()
    for stage, label, key in (("../judge", one, KEY), ("judge", "..", KEY), ("judge", one, "x")):
        with pytest.raises(ValueError):
            store.mark(stage, label, key)


def test_missing_artifact_is_said_to_be_missing(store: Store):
    assert not store.has("judge", KEY)
    assert store.keys("judge") == set()
    store.drop("judge", KEY)
    for read in (store.read_shard, store.record, store.verify):
        with pytest.raises(StoreError, match=f"judge {KEY} is not in the store"):
            read("judge", KEY)


def test_keys_lists_its_own_stage_alone(store: Store, root: str):
    mine = {content_key({"n": n}) for n in range(5)}
    for key in mine:
        store.put_shard("judge", key, TABLE, {})
    store.put_shard("judge_again", KEY, TABLE, {})
    store.put_files("object_sft", KEY, FILES, {})
    objects_at(root).replace("pool/judge/notes.txt", b"left by a person")
    assert store.keys("judge") == mine
    assert store.keys("object_sft") == {KEY}
    assert store.has("object_sft", KEY)


def test_keys_of_many_shards_come_over_several_pages(store: Store, root: str):
    objects = objects_at(root)
    many = {content_key({"n": n}) for n in range(1050)}
    for key in many:
        objects.create(f"pool/judge/{key}", b"")
    assert store.keys("judge") == many


@pytest.mark.parametrize("stage", ["", "Judge", "a/b", "..", "blobs", "judge1", "judge\n"])
def test_stage_that_is_no_plain_name_is_refused(tmp_path: Path, stage: str):
    store = open_store(str(tmp_path))
    for act in (store.has, store.read_shard, store.drop):
        with pytest.raises(ValueError, match="stage"):
            act(stage, KEY)
    with pytest.raises(ValueError, match="stage"):
        store.keys(stage)


@pytest.mark.parametrize("key", ["", "../../metagen.json", KEY[:-1], KEY.upper(), KEY + "0", KEY[:-1] + "\n"])
def test_key_that_is_no_digest_is_refused(tmp_path: Path, key: str):
    with pytest.raises(ValueError, match="key"):
        open_store(str(tmp_path)).put_shard("judge", key, TABLE, {})


def test_files_come_back_with_their_record(store: Store, tmp_path: Path):
    assert store.put_files("object_sft", KEY, FILES, {"seed": 4})
    assert not store.put_files("object_sft", KEY, {"other": b"1"}, {"seed": 5})
    record = store.fetch_files("object_sft", KEY, tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == FILES
    assert record["seed"] == 4
    assert store.record("object_sft", KEY) == record
    store.verify("object_sft", KEY)


def test_files_fetch_mends_what_is_wrong_and_leaves_what_is_right(store: Store, tmp_path: Path):
    store.put_files("object_sft", KEY, FILES, {})
    store.fetch_files("object_sft", KEY, tmp_path)
    right, wrong = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    before = right.stat().st_ino
    wrong.write_bytes(b"half")
    store.fetch_files("object_sft", KEY, tmp_path)
    assert wrong.read_bytes() == FILES["adapter_config.json"]
    assert right.stat().st_ino == before


def test_files_fetched_side_by_side_are_whole_for_each(store: Store, tmp_path: Path):
    store.put_files("object_sft", KEY, FILES, {})
    seen: list[bool] = []

    def fetch() -> None:
        store.fetch_files("object_sft", KEY, tmp_path)
        seen.append(all((tmp_path / name).read_bytes() == data for name, data in FILES.items()))

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 8
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a//b", "", ".", "a/../b", "a\x00b", ".hidden"])
def test_files_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="plain relative path"):
        open_store(str(tmp_path)).put_files("object_sft", KEY, {name: b"x"}, {})


def test_files_equal_bytes_are_stored_once(store: Store, root: str):
    for n in range(3):
        store.put_files("object_sft", content_key({"n": n}), {"config": b"same", "weights": bytes([n])}, {})
    assert len(list(objects_at(root).list("pool/blobs"))) == 4


@pytest.mark.parametrize("damage", ["flipped", "half", "gone", "manifest", "foreign manifest"])
def test_files_damage_is_named_and_mended_by_drop_and_put(store: Store, root: str, tmp_path: Path, damage: str):
    store.put_files("object_sft", KEY, FILES, {})
    objects = objects_at(root)
    weights = FILES["adapter_model.safetensors"]
    blob, manifest = f"pool/blobs/{hashlib.sha256(weights).hexdigest()}", f"pool/object_sft/{KEY}"
    if damage == "flipped":
        objects.replace(blob, weights[:-1] + bytes([weights[-1] ^ 1]))
    elif damage == "half":
        objects.replace(blob, weights[:-9])
    elif damage == "gone":
        objects.delete(blob)
    elif damage == "manifest":
        objects.replace(manifest, (objects.read(manifest) or b"").replace(b"config", b"konfig"))
    else:
        objects.replace(manifest, json.dumps({"files": {"../../x": "00"}}).encode())
    for read in (
        lambda: store.verify("object_sft", KEY),
        lambda: store.fetch_files("object_sft", KEY, tmp_path),
    ):
        with pytest.raises(StoreError, match=f"object_sft {KEY} is damaged.*--repair"):
            read()
    store.drop("object_sft", KEY)
    assert store.put_files("object_sft", KEY, FILES, {})
    store.fetch_files("object_sft", KEY, tmp_path)


def test_docs_are_written_over_and_listed(store: Store):
    store.write_doc("studies/pocket-ab12/study.yaml", b"seed: 0")
    store.write_doc("studies/pocket-ab12/study.yaml", b"seed: 1")
    store.write_doc("studies/pocket-ab12/report/index.html", b"<html>")
    store.write_doc("studies/other-ab12/study.yaml", b"")
    assert store.read_doc("studies/pocket-ab12/study.yaml") == b"seed: 1"
    assert store.list_docs("studies/pocket-ab12/") == [
        "studies/pocket-ab12/report/index.html",
        "studies/pocket-ab12/study.yaml",
    ]
    assert len(store.list_docs("studies")) == 3
    assert store.list_docs("studies/nobody") == []


def test_docs_missing_or_elsewhere_are_refused(store: Store):
    with pytest.raises(StoreError, match="no document"):
        store.read_doc("studies/pocket/none.txt")
    for path in ("pool/judge/x", "studies/../metagen.json", "metagen.json"):
        with pytest.raises(ValueError, match=r"documents|plain"):
            store.write_doc(path, b"")


def test_store_travels_to_another_process(store: Store):
    store.put_shard("judge", KEY, TABLE, {})
    assert pickle.loads(pickle.dumps(store)).read_shard("judge", KEY)[0].equals(TABLE)
    assert open_store(store.root).keys("judge") == {KEY}


def test_record_with_a_number_json_lacks_is_refused_before_anything_is_put(store: Store):
    with pytest.raises(ValueError, match="seconds"):
        store.put_shard("judge", KEY, TABLE, {"seconds": float("nan")})
    assert not store.has("judge", KEY)
