"""Input of somebody who means harm, or whose disk does: every kind ends as one clear error, in little time and memory.

Each case is (what is read, how it is broken). Fuzzing adds the ones nobody thought of.
"""

import json
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metagen_ray.cli import main
from metagen_ray.errors import InputError, StoreError, UserError
from metagen_ray.stages.pulse import driver_line, pace, read_pulse
from metagen_ray.store import open_store
from metagen_ray.store.keys import artifact_path, doc_path, lease_folder, mark_path, plain_path
from metagen_ray.store.manifests import blob_digest, decode_manifest, encode_manifest
from metagen_ray.store.shards import DamageError, decode_shard, encode_shard, seal, tail_record, unseal
from metagen_ray.study import Study, load_study, parse_yaml, study_from

KEY = "a" * 64
TABLE = pa.table({"x": [1, 2, 3]})
SHARD = encode_shard(TABLE, {"seed": 1})
MANIFEST = encode_manifest({"adapter_config.json": b"{}"}, {"seed": 1})
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=False)
)

NAMES = {
    "up": "../x",
    "absolute": "/etc/passwd",
    "up inside": "a/../../x",
    "dot": ".",
    "empty": "",
    "unicode": "ключ",
    "right to left": "\u202egpj.exe",
    "full width": "．．/x",
    "null": "a\0b",
    "newline": "a\nb",
    "blank": "a b",
    "tilde": "~/x",
    "backslash": "..\\x",
    "url": "file:///etc",
    "10 kB": "x" * 10_240,
    "shell": "$(id)",
    "surrogate": "\ud800",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_hostile_id_becomes_no_path(name: str, tmp_path: Path):
    makers: list[Callable[[], str]] = [
        lambda: plain_path(name),
        lambda: doc_path(f"studies/{name}/study.yaml"),
        lambda: artifact_path("predict", name),
        lambda: artifact_path(name, KEY),
        lambda: mark_path("judge", name, KEY),
        lambda: lease_folder(name),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=r"."):
            make()
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(ValueError, match="plain"):
        store.put_files("object_sft", KEY, {name: b"x"}, {})
    assert {p.name for p in tmp_path.iterdir()} == {"store"}


@pytest.mark.parametrize("name", [n for n in NAMES.values() if n != "10 kB" and "\0" not in n and n != "\ud800"])
def test_hostile_run_is_one_line_and_makes_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    open_store(str(tmp_path / "store"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["status", name, "--store", str(tmp_path / "store")]) in (2, 3)
    assert "metagen: " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


STUDIES: dict[str, bytes] = {
    "no mapping": b"- a\n- b",
    "a number": b"7",
    "wrong type": b"domains: many",
    "nested wrong type": b"resources: [1, 2]",
    "unknown key": b"__class__: x",
    "python object": b"name: !!python/object/apply:os.system ['id']",
    "python name": b"name: !!python/name:os.system",
    "aliases": BOMB.encode() + b"name: *i",
    "aliases as section": BOMB.encode() + b"resources: *i",
    "deep": b"name: " + b"[" * 20_000,
    "deep mapping": b"{a: " * 5_000,
    "open quote": b'name: "x',
    "tab": b"name:\tx\n\t- y",
    "utf-16": "name: x".encode("utf-16"),
    "no utf-8": b"name: \xff\xfe",
    "null bytes": b"name: a\0b",
    "huge": b"# " + b"x" * 2_000_000,
    "date of no day": b"name: 2024-99-99",
    "number of many digits": b"domains: " + b"9" * 5_000,
    "not a number": b"temperature: .nan",
    "infinite": b"temperature: .inf",
    "negative": b"domains: -1",
    "name that is a path": b"name: ../../x",
    "name of 10 kB": b"name: " + b"x" * 10_240,
    "duplicate anchors": b"a: &x 1\nb: &x 2\nc: *x",
    "pickle": pickle.dumps({"name": "x"}),
    "control characters": b"name: \x07\x1b[2J",
}


@pytest.mark.parametrize("content", STUDIES.values(), ids=STUDIES)
def test_hostile_study_is_an_input_error_and_short(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    assert main(["plan", str(path), "--set", f"store={tmp_path / 'store'}"]) == 2
    error = capsys.readouterr().err
    assert str(path) in error or path.name in error or "..." in error
    assert error.count("\n") == 1 and len(error) < 3_000
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("override", ["name=2024-99-99", "name=" + "[" * 20_000, "name={", "=x", "name", "a.b.c=1"])
def test_hostile_override_is_an_input_error(override: str):
    with pytest.raises(InputError):
        load_study("pocket", [override])


@pytest.mark.parametrize("source", ["a\0.yaml", "x" * 10_240 + ".yaml", "x" * 10_240, "/proc/self/mem.yaml", ".yaml"])
def test_hostile_path_of_a_study_is_an_input_error_and_short(source: str):
    with pytest.raises(InputError) as refused:
        load_study(source)
    assert len(str(refused.value)) < 12_000


def parquet_of(record: bytes | None, table: pa.Table = TABLE) -> bytes:
    """A Parquet file of another program, with a record of its own."""
    buffer = pa.BufferOutputStream()
    metadata = {} if record is None else {b"metagen": record}
    pq.write_table(table.replace_schema_metadata(metadata), buffer)
    return buffer.getvalue().to_pybytes()


SHARDS: dict[str, bytes] = {
    "empty": b"",
    "magic alone": b"PAR1",
    "twice the magic": b"PAR1PAR1",
    "half": SHARD[: len(SHARD) // 2],
    "without its last byte": SHARD[:-1],
    "without its first byte": SHARD[1:],
    "footer longer than the file": SHARD[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
    "footer of no length": SHARD[:-8] + bytes(4) + b"PAR1",
    "a flipped bit in the rows": SHARD[:20] + bytes([SHARD[20] ^ 1]) + SHARD[21:],
    "zeros": bytes(1_000),
    "pickle": pickle.dumps(os.system),
    "no record": parquet_of(None),
    "record of nonsense": parquet_of(b"{"),
    "record without a seal": parquet_of(b'{"record": {}}'),
    "record with another's seal": parquet_of(json.dumps({"record": {"rows": 3}, "seal": "0" * 64}).encode()),
    "sealed record of other rows": parquet_of(seal({"rows": 3, "digest": "0" * 64})),
    "sealed record that is a list": parquet_of(b'{"record": [], "seal": "x"}'),
    "deep record": parquet_of(b'{"record": ' + b"[" * 50_000),
    "zip": b"PK\x03\x04" + bytes(100),
    "compressed": zlib.compress(SHARD),
}


@pytest.mark.parametrize("content", SHARDS.values(), ids=SHARDS)
def test_hostile_shard_is_damage_and_named(content: bytes, tmp_path: Path):
    with pytest.raises(DamageError):
        decode_shard(content)
    store = open_store(str(tmp_path))
    path = tmp_path / "pool" / "predict" / KEY
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    whole_at_its_end = ("a flipped bit in the rows", "sealed record of other rows", "without its first byte")
    record_is_whole = content in (SHARDS[name] for name in whole_at_its_end)
    for read in (store.read_shard, store.verify, *(() if record_is_whole else (store.record,))):
        with pytest.raises(StoreError, match=rf"{KEY} is damaged.*--repair"):
            read("predict", KEY)


MANIFESTS: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "half": MANIFEST[: len(MANIFEST) // 2],
    "no files": seal({"record": {}}),
    "files that are a list": seal({"files": [], "record": {}}),
    "a name that goes up": seal({"files": {"../../x": blob_digest(b"")}, "record": {"digest": "x"}}),
    "an absolute name": seal({"files": {"/etc/passwd": blob_digest(b"")}, "record": {"digest": "x"}}),
    "a digest that goes up": seal({"files": {"x": "../../../etc/passwd"}, "record": {"digest": "x"}}),
    "a digest of another type": seal({"files": {"x": 7}, "record": {"digest": "x"}}),
    "a record that is a text": seal({"files": {"x": blob_digest(b"")}, "record": "x"}),
    "another digest": seal({"files": {"x": blob_digest(b"")}, "record": {"digest": "0" * 64}}),
    "deep": b'{"record": ' + b'{"a":' * 50_000,
    "a number of many digits": b'{"record": {"a": ' + b"9" * 10_000 + b'}, "seal": "x"}',
    "not a number": b'{"record": {"a": NaN}, "seal": "x"}',
    "pickle": pickle.dumps({"files": {}}),
    "surrogate": b'{"record": {"a": "\\ud800"}, "seal": "x"}',
}


@pytest.mark.parametrize("content", MANIFESTS.values(), ids=MANIFESTS)
def test_hostile_manifest_is_damage_and_writes_nothing(content: bytes, tmp_path: Path):
    with pytest.raises(DamageError):
        decode_manifest(content)
    store = open_store(str(tmp_path / "store"))
    path = tmp_path / "store" / "pool" / "object_sft" / KEY
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"{KEY} is damaged"):
        store.fetch_files("object_sft", KEY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


ADAPTERS: dict[str, dict[str, bytes]] = {
    "empty": {"adapter_model.safetensors": b""},
    "header longer than the file": {"adapter_model.safetensors": (2**40).to_bytes(8, "little") + b"{}"},
    "header of nonsense": {"adapter_model.safetensors": (4).to_bytes(8, "little") + b"{{{{"},
    "offsets outside": {
        "adapter_model.safetensors": (lambda h: len(h).to_bytes(8, "little") + h)(
            b'{"x":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
        )
    },
    "shape of nonsense": {
        "adapter_model.safetensors": (lambda h: len(h).to_bytes(8, "little") + h + bytes(4))(
            b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'
        )
    },
    "pickle under its name": {"adapter_model.safetensors": pickle.dumps({"x": 1})},
    "pickle alone": {"adapter_model.bin": pickle.dumps({"x": 1})},
    "config of nonsense": {"adapter_config.json": b"{"},
    "config that is a list": {"adapter_config.json": b"[]"},
    "config of wrong types": {"adapter_config.json": b'{"r": "8", "lora_alpha": [], "target_modules": 7}'},
    "rank 0": {"adapter_config.json": b'{"r": 0, "lora_alpha": 1, "target_modules": ["q_proj"]}'},
    "a rank of many digits": {"adapter_config.json": b'{"r": ' + b"9" * 5_000 + b', "target_modules": ["q_proj"]}'},
}


@pytest.mark.parametrize("odd", ADAPTERS.values(), ids=ADAPTERS)
def test_hostile_adapter_is_one_line(odd: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import torch
    from safetensors.torch import save

    folder, lines = tmp_path / "adapter", tmp_path / "lines.jsonl"
    folder.mkdir()
    sound = {
        "adapter_model.safetensors": save({"base_model.model.x.lora_A.weight": torch.zeros(1, 1)}),
        "adapter_config.json": b'{"r": 1, "lora_alpha": 1, "lora_dropout": 0, "target_modules": ["q_proj"]}',
    }
    files = odd if "adapter_model.bin" in odd else {**sound, **odd}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    lines.write_text('{"question": "a", "answers": ["b"]}\n')
    assert main(["score", "lab:informative", str(lines), "--adapter", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("metagen: ") and error.count("\n") == 1 and len(error) < 2_000


LINES: dict[str, bytes] = {
    "empty": b"",
    "blank line": b"\n",
    "half": b'{"question": "a", "answers": ["b"',
    "a list": b"[]",
    "wrong types": b'{"question": 1, "answers": "b"}',
    "unknown field": b'{"question": "a", "answers": ["b"], "__import__": "os"}',
    "deep": b'{"question": ' + b"[" * 50_000,
    "surrogate": b'{"question": "\\ud800", "answers": ["b"]}',
    "no utf-8": b'{"question": "\xff", "answers": ["b"]}',
    "not a number": b'{"question": "a", "answers": [NaN]}',
    "longer than the model": json.dumps({"question": "a " * 5_000, "answers": ["b"]}).encode(),
    "no answers": b'{"question": "a", "answers": []}',
    "pickle": pickle.dumps([1]),
    "null": b"null",
}


@pytest.mark.parametrize("content", LINES.values(), ids=LINES)
def test_hostile_line_is_named_by_its_number(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(content)
    assert main(["score", "lab:informative", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and error.count("\n") == 1 and len(error) < 2_000


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_fuzz_bytes_are_damage_or_whole(content: bytes):
    for decode in (decode_shard, decode_manifest, unseal, tail_record):
        try:
            decode(content)
        except DamageError:
            continue


@given(st.integers(0, len(SHARD) - 1), st.integers(1, 255), st.integers(0, len(MANIFEST) - 1))
@settings(max_examples=300, deadline=None)
def test_fuzz_a_changed_byte_is_noticed_or_changes_nothing(at: int, change: int, place: int):
    for data, where, decode, sound in (
        (SHARD, at, decode_shard, decode_shard(SHARD)),
        (MANIFEST, place, decode_manifest, decode_manifest(MANIFEST)),
    ):
        broken = data[:where] + bytes([data[where] ^ change]) + data[where + 1 :]
        try:
            found: Any = decode(broken)
        except DamageError:
            continue
        assert found == sound


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_fuzz_yaml_text_is_a_study_or_an_input_error(text: str):
    try:
        assert isinstance(study_from(parse_yaml(text, "fuzz"), "fuzz"), Study)
    except InputError as error:
        assert len(str(error)) < 3_000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*Study.model_fields]), VALUES)
@settings(max_examples=300, deadline=None)
def test_fuzz_any_value_of_a_setting_is_taken_or_an_input_error(name: str, value: Any):
    try:
        study = study_from({name: value}, "fuzz")
    except UserError:
        return
    assert study_from(parse_yaml(study.to_yaml(), "again"), "again") == study


STAGE = st.fixed_dictionaries({n: VALUES for n in ("planned", "done", "failed", "seconds", "running")})
PULSE = {"driver": VALUES, "state": VALUES, "stages": VALUES | st.dictionaries(st.text(max_size=4), VALUES | STAGE)}
WRITTEN = VALUES | st.sampled_from(["2026-11-25T20:00:00+00:00", "2026-11-25", "0001-01-01T00:00:00+00:00"])


@given(
    st.binary(max_size=99) | st.fixed_dictionaries({**PULSE, "written": WRITTEN}).map(lambda v: json.dumps(v).encode())
)
@settings(max_examples=300, deadline=None)
def test_fuzz_pulse_is_read_or_none(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    store = open_store(str(tmp_path_factory.getbasetemp() / "fuzzed"))
    store.write_doc("studies/run-1/pulse.json", content)
    told = read_pulse(store, "run-1")
    assert driver_line(told)
    for stage in (told or {"stages": {}})["stages"].values():
        assert len(pace(stage, 3)) == 2
