"""Tables survive Parquet to the bit, and no damage passes unseen."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metagen_ray.errors import StoreError
from metagen_ray.records import ANSWERS, SCORES
from metagen_ray.store import Store, content_key, open_store
from metagen_ray.store.digest import table_digest
from metagen_ray.store.shards import DamageError, decode_shard, encode_shard

KEY = content_key({"shard": 1})

VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int8(): st.integers(-(2**7), 2**7 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=8),
    pa.large_binary(): st.binary(max_size=8),
    pa.timestamp("us", "UTC"): st.integers(-(2**40), 2**40),
    pa.date32(): st.integers(-20_000, 20_000),
    pa.null(): st.none(),
}


def _nested(inner: st.SearchStrategy[tuple[pa.DataType, Any]]) -> st.SearchStrategy[tuple[pa.DataType, Any]]:
    lists = inner.map(lambda both: (pa.list_(both[0]), st.lists(both[1], max_size=3)))
    structs = inner.map(
        lambda both: (pa.struct([("x", both[0]), ("y", pa.int16())]), st.fixed_dictionaries({"x": both[1]}))
    )
    return lists | structs


COLUMNS = st.recursive(st.sampled_from(list(VALUES.items())), _nested, max_leaves=3)


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 6))
    columns = {}
    for position in range(draw(st.integers(1, 3))):
        kind, values = draw(COLUMNS)
        cells = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        columns[f"c{position}"] = pa.array(cells, kind)
    return pa.table(columns)


@settings(max_examples=300, deadline=None)
@given(tables())
def test_shard_any_table_comes_back_with_its_types_and_digest(table: pa.Table):
    back, record = decode_shard(encode_shard(table, {"seed": 3}))
    assert back.schema.equals(table.schema, check_metadata=True)
    assert repr(back.to_pylist()) == repr(table.to_pylist())  # repr: NaN equals itself
    assert record == {"seed": 3, "rows": table.num_rows, "digest": table_digest(table)}


@settings(max_examples=200, deadline=None)
@given(tables(), st.integers(0, 6))
def test_digest_chunks_slices_and_bytes_under_nulls_do_not_count(table: pa.Table, cut: int):
    chunked = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    padded = pa.concat_tables([table, table]).combine_chunks().slice(table.num_rows)
    rebuilt = pa.Table.from_pylist(table.to_pylist(), schema=table.schema)
    assert {table_digest(t) for t in (chunked, padded, rebuilt)} == {table_digest(table)}


def test_digest_bytes_under_a_null_do_not_count():
    clean = pa.array([1, None, 3], pa.int64())
    values = pa.array([1, 777, 3], pa.int64()).buffers()[1]
    dirty = pa.Array.from_buffers(pa.int64(), 3, [clean.buffers()[0], values])
    assert table_digest(pa.table({"a": dirty})) == table_digest(pa.table({"a": clean}))


def test_digest_any_difference_counts():
    cells: list[tuple[pa.DataType, list[Any]]] = [
        (pa.string(), ["a", "bc"]), (pa.string(), ["ab", "c"]), (pa.string(), ["", "abc"]),
        (pa.string(), [None, "abc"]), (pa.binary(), [b"a", b"bc"]), (pa.int16(), [1]), (pa.int16(), [1, 2]),
        (pa.int32(), [1, 2]), (pa.int16(), [2, 1]),
        (pa.float64(), [0.0, 1.0]), (pa.float64(), [-0.0, 1.0]), (pa.float64(), [None, 1.0]),
        (pa.float64(), [float("nan"), 1.0]), (pa.list_(pa.int8()), [[1], [2, 3]]), (pa.list_(pa.int8()), [[1, 2], [3]]),
        (pa.list_(pa.int8()), [[], [1, 2, 3]]), (pa.list_(pa.int8()), [None, [1, 2, 3]]),
    ]  # fmt: skip
    made = [pa.table({"a": pa.array(values, kind)}) for kind, values in cells]
    renamed = pa.table({"b": pa.array(["a", "bc"])})
    assert len({table_digest(t) for t in [*made, renamed]}) == len(made) + 1


def test_shard_unsupported_type_is_refused_by_column():
    with pytest.raises(TypeError, match=r"'price'.*decimal"):
        encode_shard(pa.table({"price": pa.array([1], pa.decimal128(9, 2))}), {})


@pytest.mark.parametrize("schema", [ANSWERS, SCORES])
def test_shard_rows_of_the_system_keep_their_schema(schema: pa.Schema):
    back, _ = decode_shard(encode_shard(schema.empty_table(), {}))
    assert back.schema.equals(schema, check_metadata=True)


def _answers(rows: int) -> pa.Table:
    cells = [
        {"train_domain": f"d{i % 3}", "eval_domain": "e", "question": i % 4, "draw": -1, "sample": i % 2}
        | {"answer": f"answer {i}", "tokens": list(range(i % 7)), "finish": "stop"}
        for i in range(rows)
    ]
    return pa.Table.from_pylist(cells, schema=ANSWERS)


def test_shard_flipped_bits_anywhere_are_noticed_or_harmless():
    table, record = _answers(200), {"seed": 7, "versions": {"stage": 1}}
    whole = encode_shard(table, record)
    expected = decode_shard(whole)
    rng = random.Random(20)
    noticed = 0
    for _ in range(4000):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        try:
            found = decode_shard(bytes(damaged))
        except DamageError:
            noticed += 1
        else:
            assert found == expected  # the bit lay in statistics or padding
    assert noticed > 3000


def test_shard_truncated_anywhere_is_noticed():
    whole = encode_shard(_answers(50), {})
    for length in range(0, len(whole), 7):
        with pytest.raises(DamageError):
            decode_shard(whole[:length])


def test_shard_record_edited_by_hand_is_noticed():
    whole = encode_shard(_answers(3), {"seed": 7})
    edited = whole.replace(b'"seed": 7', b'"seed": 8')
    assert edited != whole
    with pytest.raises(DamageError, match="checksum"):
        decode_shard(edited)


def _foreign() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    return sink.getvalue().to_pybytes()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "garbled": lambda whole: whole[:40] + bytes(b ^ 0x5A for b in whole[40:80]) + whole[80:],
    "text": lambda whole: b"not a table\n" * 40,
    "foreign parquet": lambda whole: _foreign(),
    "zeros": lambda whole: bytes(len(whole)),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_read_damaged_shard_names_stage_key_path_and_repair(tmp_path: Path, damage: str):
    store = open_store(str(tmp_path / "store"))
    store.put_shard("ground_truth", KEY, _answers(50), {})
    path = tmp_path / "store" / "pool" / "ground_truth" / KEY
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    for read in (store.read_shard, store.verify):
        with pytest.raises(StoreError) as caught:
            read("ground_truth", KEY)
        message = str(caught.value)
        assert all(part in message for part in ("ground_truth", KEY, str(path), "--repair")), message
        assert "\n" not in message


def test_repair_dropped_shard_is_missing_and_can_be_made_again(store: Store):
    store.put_shard("judge", KEY, _answers(2), {})
    store.drop("judge", KEY)
    assert store.keys("judge") == set()
    with pytest.raises(StoreError, match="run its stage"):
        store.read_shard("judge", KEY)
    assert store.put_shard("judge", KEY, _answers(3), {})
    assert store.read_shard("judge", KEY)[1]["rows"] == 3
