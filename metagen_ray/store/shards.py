"""One table and its record as the bytes of one Parquet file, and back. Does no I/O.

The record is JSON in the footer, sealed by its own sha256, so that a flipped bit in either half is noticed: the
record's `digest` covers the table, the seal covers the record.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from metagen_ray.store.digest import table_digest
from metagen_ray.store.keys import canonical_json

_RECORD = b"metagen"
_MAGIC = b"PAR1"
_TRAILER_BYTES = 8  # length of the footer (4 bytes, little-endian), then the magic


class DamageError(Exception):
    """The bytes are not what was committed; the message says in what way."""


def encode_shard(table: pa.Table, record: Mapping[str, Any]) -> bytes:
    """Parquet bytes; `record` gets `rows` and `digest`. Metadata of the table's schema is not kept."""
    table = table.replace_schema_metadata(None)
    whole = {**record, "rows": table.num_rows, "digest": table_digest(table)}
    buffer = io.BytesIO()
    # "Compliant" lists would rename their items, and the type that comes back would not be the one put in.
    options = {"compression": "zstd", "use_compliant_nested_type": False}
    with pq.ParquetWriter(buffer, table.schema, **options) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_RECORD: seal(whole)})
    return buffer.getvalue()


def decode_shard(data: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """The table and its record, both verified; DamageError if a bit of either is not as it was."""
    record = _footer_record(data)
    try:
        table = pq.read_table(pa.BufferReader(data), use_threads=False).replace_schema_metadata(None)
        table.validate(full=True)
        digest = table_digest(table)
    except (pa.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        raise DamageError(f"its Parquet cannot be read ({_brief(error)})") from None
    if digest != record.get("digest"):
        raise DamageError(f"its rows do not match their digest {str(record.get('digest'))[:12]}")
    return table, record


def is_shard(tail: bytes) -> bool:
    """Whether an object that ends in these bytes is a Parquet file."""
    return tail.endswith(_MAGIC)


def tail_record(tail: bytes) -> dict[str, Any] | None:
    """The record from the end of a Parquet file; None if its footer begins before `tail` does."""
    footer_bytes = int.from_bytes(tail[-_TRAILER_BYTES:-4], "little")
    return _footer_record(tail) if footer_bytes + _TRAILER_BYTES <= len(tail) else None


def seal(record: Mapping[str, Any]) -> bytes:
    """A record as JSON bytes with a checksum of its own."""
    text = canonical_json(dict(record))
    return json.dumps({"record": json.loads(text), "seal": _checksum(text)}).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """The record within sealed bytes; DamageError if it is not as it was sealed."""
    try:
        box = json.loads(data)
        record, checksum = box["record"], box["seal"]
        text = canonical_json(record)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamageError(f"its record cannot be read ({_brief(error)})") from None
    if not isinstance(record, dict) or checksum != _checksum(text):
        raise DamageError("its record does not match its checksum")
    return record


def _footer_record(data: bytes) -> dict[str, Any]:
    if not data:
        raise DamageError("it is empty")
    try:
        metadata = pq.read_metadata(pa.BufferReader(data)).metadata or {}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamageError(f"it is no complete Parquet file ({_brief(error)})") from None
    if _RECORD not in metadata:
        raise DamageError("it carries no record: another program wrote it")
    return unseal(metadata[_RECORD])


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
