"""A digest of what a table says, whatever bytes say it. Knows Arrow; knows nothing of Parquet or storage.

Chunking, slicing, spare bits and the bytes that lie under nulls do not count: each column is fed to sha256 as its
validity, its lengths and its values. Floats count by bits, but all NaN are one.
"""

import hashlib
import json

import numpy as np
import pyarrow as pa

_SLICE_ROWS = 65_536  # bounds the working copy; cut by row number, so it does not depend on chunks
_WORD = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}


def table_digest(table: pa.Table) -> str:
    """64 hex digits over names, types, nullability, row count and values.

    Raises TypeError for a column type that has no digest (decimals, maps, unions, views, extensions).
    """
    fields = [(f.name, str(f.type), f.nullable) for f in table.schema]
    hasher = hashlib.sha256(json.dumps([fields, table.num_rows]).encode())
    for name, column in zip(table.column_names, table.columns, strict=True):
        for start in range(0, table.num_rows, _SLICE_ROWS):
            part = column.slice(start, _SLICE_ROWS).combine_chunks()
            try:
                _feed(hasher, part)
            except TypeError as error:
                raise TypeError(f"column {name!r}: {error}") from None
    return hasher.hexdigest()


def _feed(hasher: "hashlib._Hash", array: pa.Array | pa.ChunkedArray) -> None:
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    kind = array.type
    hasher.update(len(array).to_bytes(8, "little"))
    hasher.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_dictionary(kind):
        _feed(hasher, array.dictionary_decode())
    elif pa.types.is_struct(kind):
        for child in array.flatten():
            _feed(hasher, child)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        hasher.update(_words(array.value_lengths().cast(pa.int64())).tobytes())
        _feed(hasher, array.flatten())
    elif _is_text(kind):
        _feed_text(hasher, array)
    elif pa.types.is_boolean(kind):
        hasher.update(_words(array.cast(pa.int8())).tobytes())
    elif not pa.types.is_null(kind):
        hasher.update(_words(array).tobytes())


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _feed_text(hasher: "hashlib._Hash", array: pa.Array) -> None:
    filled = array.cast(pa.large_binary()).fill_null(b"")
    _, offsets, content = filled.buffers()
    if not len(filled):
        return
    ends = np.frombuffer(offsets, np.int64)[filled.offset : filled.offset + len(filled) + 1]
    hasher.update(np.diff(ends).tobytes())
    if content is not None:
        hasher.update(memoryview(content)[ends[0] : ends[-1]])


def _words(array: pa.Array) -> np.ndarray:
    """Fixed-width values as their bits, nulls as zeros."""
    kind = array.type
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind)
    if not plain or kind.bit_width not in _WORD:
        raise TypeError(f"{kind} has no digest; store it as numbers, text, lists or structs of these")
    words = array.view(_WORD[kind.bit_width]).fill_null(0).to_numpy(zero_copy_only=False)
    if not pa.types.is_floating(kind):
        return words
    values = words.view(f"f{words.itemsize}").copy()
    values[np.isnan(values)] = np.nan  # Parquet's dictionary keeps one NaN for all of them
    return values
