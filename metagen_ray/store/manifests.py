"""An artifact of several files as blobs named by their digest, and a sealed manifest that lists them. Does no I/O."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metagen_ray.store.keys import canonical_json, is_key, plain_path
from metagen_ray.store.shards import DamageError, seal, unseal


@dataclass(frozen=True)
class Manifest:
    """File name -> sha256 of its bytes, and the artifact's record."""

    files: dict[str, str]
    record: dict[str, Any]


def blob_digest(data: bytes) -> str:
    """The name of a blob: the sha256 of its bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def encode_manifest(files: Mapping[str, bytes], record: Mapping[str, Any]) -> bytes:
    """Manifest bytes; `record` gets `digest`, over names and contents. ValueError for a name that is no plain path."""
    if not files:
        raise ValueError("an artifact without files says nothing; give at least one")
    digests = {plain_path(name): blob_digest(data) for name, data in files.items()}
    return seal({"files": digests, "record": {**record, "digest": _digest(digests)}})


def decode_manifest(data: bytes) -> Manifest:
    """The manifest, verified; DamageError if it is not as it was committed."""
    if not data:
        raise DamageError("it is empty")
    box = unseal(data)
    try:
        files = {plain_path(name): str(digest) for name, digest in box["files"].items()}
        record = dict(box["record"])
        if not all(map(is_key, files.values())):  # a digest becomes a path
            raise ValueError("a digest is 64 hex digits")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DamageError("it is no manifest of files: another program wrote it") from None
    if record.get("digest") != _digest(files):
        raise DamageError("its files do not match its digest")
    return Manifest(files, record)


def _digest(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(canonical_json(dict(digests)).encode()).hexdigest()
