"""Names in the store: content keys, and the checks a name passes before it becomes a path. Does no I/O."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

BLOBS = "blobs"
_STAGE = re.compile(r"[a-z_]{1,64}")
_KEY = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def content_key(parts: Mapping[str, Any]) -> str:
    """The sha256 (64 hex digits) of `parts` as canonical JSON: sorted keys, no blanks, floats by repr.

    Raises TypeError for what JSON does not have and ValueError for NaN and infinities; both name the place.
    """
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """One text for one value, so that it can be hashed; raises as `content_key` does."""
    _check_json(value, "the value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check_json(value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        if not isinstance(value, dict):
            raise TypeError(f"{place} is a {type(value).__name__}; only dict becomes JSON")
        for name, inner in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{place} has the key {name!r}; keys must be strings")
            _check_json(inner, f"{place}[{name!r}]")
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            _check_json(inner, f"{place}[{position}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} is {value}; only finite numbers have a key")
    elif value is not None and not isinstance(value, str | int):
        raise TypeError(f"{place} is a {type(value).__name__}, which JSON does not have")


def artifact_path(stage: str, key: str) -> str:
    """`pool/<stage>/<key>`; ValueError if either is not a plain name."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"a key is 64 hex digits (content_key), not {key!r}")
    return f"{stage_folder(stage)}/{key}"


def stage_folder(stage: str) -> str:
    """`pool/<stage>`; ValueError unless the stage is of [a-z_]+ and not the folder of blobs."""
    if not _STAGE.fullmatch(stage) or stage == BLOBS:
        raise ValueError(f"a stage is a name of a-z and _ other than {BLOBS!r}, not {stage!r}")
    return f"pool/{stage}"


def blob_path(sha256: str) -> str:
    """Where the bytes with this digest lie."""
    return f"pool/{BLOBS}/{sha256}"


def mark_path(stage: str, label: str, key: str) -> str:
    """`marks/<stage>/<label>/<key>`; ValueError unless label and key are content keys."""
    if not (is_key(label) and is_key(key)):
        raise ValueError(f"a label and a key are 64 hex digits (content_key), not {label!r} and {key!r}")
    return f"{mark_folder(stage)}/{label}/{key}"


def mark_folder(stage: str) -> str:
    """`marks/<stage>`; ValueError if the stage is no plain name."""
    return f"marks/{stage_folder(stage).partition('/')[2]}"


def is_key(name: str) -> bool:
    """Whether a name found in a listing is an artifact, not something a person left there."""
    return _KEY.fullmatch(name) is not None


def doc_path(path: str) -> str:
    """`path` if it is a plain path below studies/; else ValueError."""
    if not path.startswith("studies/"):
        raise ValueError(f"documents lie under studies/<run>/, not at {path!r}")
    return plain_path(path)


def plain_path(path: str) -> str:
    """`path` if it is relative and each of its parts is a plain name; else ValueError."""
    if not all(_PART.fullmatch(part) for part in path.split("/")):
        raise ValueError(f"{path!r} is no plain relative path (letters, digits, '.', '_', '-', separated by '/')")
    return path


def lease_folder(name: str) -> str:
    """`leases/<name>`; ValueError if the name is not plain."""
    if not _PART.fullmatch(name):
        raise ValueError(f"a lease's name is of letters, digits, '.', '_' and '-', not {name!r}")
    return f"leases/{name}"
