"""The store of a system: shards, file artifacts, documents and leases below one root. Knows nothing of studies.

    ROOT/metagen.json            the store's format
    ROOT/pool/<stage>/<key>      one Parquet shard, or the manifest of a file artifact
    ROOT/pool/blobs/<sha256>     the files of artifacts
    ROOT/marks/<stage>/<label>/<key>  empty; which artifacts belong to a label
    ROOT/studies/<run>/...       documents for people, overwritable
    ROOT/leases/<name>/<token>   who holds what

An artifact exists once its one object under `pool/<stage>/<key>` exists; that object is created if absent, never
rewritten, so the first writer wins and a late one changes nothing.
"""

import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from metagen_ray.errors import StoreError
from metagen_ray.store.cloud import CloudObjects
from metagen_ray.store.disk import DiskObjects
from metagen_ray.store.keys import artifact_path, blob_path, doc_path, is_key, mark_folder, mark_path, stage_folder
from metagen_ray.store.leases import Lease
from metagen_ray.store.manifests import Manifest, blob_digest, decode_manifest, encode_manifest
from metagen_ray.store.objects import Objects
from metagen_ray.store.shards import DamageError, decode_shard, encode_shard, is_shard, tail_record

FORMAT = 1
_FORMAT_PATH = "metagen.json"
_PROBE_PATH = "tmp/probe"
_TAIL_BYTES = 64 * 1024
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/+")
_T = TypeVar("_T")


def open_store(root: str, *, read_only: bool = False) -> "Store":
    """The store at `root`: a folder (made if absent), s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.

    S3 takes ?endpoint=URL&region=NAME&allow_http=true; what is missing comes from the usual AWS_* environment.
    Raises StoreError if the root cannot be used or written, or holds a store of another format. With `read_only`
    nothing is written, and a root without a store is a StoreError.
    """
    objects = objects_at(root, hasty=True)
    written = objects.read(_FORMAT_PATH)
    if not read_only:
        objects.replace(_PROBE_PATH, b"")
        if written is None:
            objects.create(_FORMAT_PATH, json.dumps({"format": FORMAT}).encode())
            written = objects.read(_FORMAT_PATH)
    _check_format(written, objects)
    if isinstance(objects, DiskObjects) and not read_only:
        objects.sweep()
    return Store(objects_at(root))


def join_store(root: str) -> "Store":
    """The store at a root that has been opened before, for the processes of a run.

    Nothing is looked at or written, and a service in trouble is waited for, where `open_store` soon gives up.
    """
    return Store(objects_at(root))


def objects_at(root: str, *, hasty: bool = False) -> Objects:
    """The place an address means; `hasty` gives up on a failing service within seconds instead of minutes."""
    scheme = _SCHEME.match(root)
    if not scheme and root:
        return DiskObjects(Path(os.path.abspath(os.path.expanduser(root))))
    if root.startswith(("s3://", "gs://")):
        return CloudObjects(root, hasty=hasty)
    found = f"{scheme[1]}:..." if scheme else "an empty text"  # the rest may carry a secret
    raise StoreError(f"{found} is no address of a store; write a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")


def _check_format(written: bytes | None, objects: Objects) -> None:
    where = objects.where(_FORMAT_PATH)
    if written is None:
        raise StoreError(f"there is no store at {objects.root} ({where} is missing); check the address, or run a study")
    try:
        found = json.loads(written)["format"]
    except (ValueError, KeyError, TypeError):
        raise StoreError(
            f'{where} is damaged or not ours; choose another root, or restore it as {{"format": N}}'
        ) from None
    if found != FORMAT:
        raise StoreError(
            f"the store {objects.root} has format {found}, this version reads {FORMAT}; choose another root"
        )


class Store:
    """What `open_store` gives. Its methods raise StoreError when the place fails; it travels between processes."""

    def __init__(self, objects: Objects):
        self._objects = objects

    def __reduce__(self) -> tuple[Callable[[str], "Store"], tuple[str]]:
        return join_store, (self.root,)

    @property
    def root(self) -> str:
        """The root, absolute and free of secrets: give it to `open_store` elsewhere."""
        return self._objects.root

    def put_shard(self, stage: str, key: str, table: pa.Table, record: Mapping[str, Any]) -> bool:
        """Commit a table with its record; False if a shard stood there already, which then stays as it is.

        The record gets `rows`, `digest` and `created` (UTC). Metadata of the table's schema is not kept.
        """
        return self._objects.create(artifact_path(stage, key), encode_shard(table, _dated(record)))

    def read_shard(self, stage: str, key: str) -> tuple[pa.Table, dict[str, Any]]:
        """The table and its record, verified against their digests."""
        return self._decoded(stage, key, decode_shard)

    def put_files(self, stage: str, key: str, files: Mapping[str, bytes], record: Mapping[str, Any]) -> bool:
        """Commit files under relative names, with a record; False if an artifact stood there already.

        The record gets `digest` and `created` (UTC). Files are put as blobs; the manifest, put last, is the commit.
        """
        manifest = encode_manifest(files, _dated(record))
        for data in files.values():
            self._put_blob(data)
        return self._objects.create(artifact_path(stage, key), manifest)

    def fetch_files(self, stage: str, key: str, directory: Path) -> dict[str, Any]:
        """Write an artifact's files below `directory`, verified, each whole or not at all; returns the record.

        Files that stand there with the right content are left alone, so processes may fetch side by side.
        """
        manifest = self._decoded(stage, key, decode_manifest)
        for name, digest in manifest.files.items():
            target = Path(directory) / name
            try:
                if not (target.is_file() and blob_digest(target.read_bytes()) == digest):
                    _write_whole(target, self._blob(stage, key, name, digest))
            except OSError as error:
                raise StoreError(
                    f"cannot write {target} ({error.strerror}); give a folder with room and rights"
                ) from error
        return manifest.record

    def record(self, stage: str, key: str) -> dict[str, Any]:
        """The record of an artifact of either kind; of a shard only the end of the file is read."""
        path = artifact_path(stage, key)
        tail = self._objects.read_tail(path, _TAIL_BYTES)
        try:
            found = tail_record(tail) if tail and is_shard(tail) else None
        except DamageError as error:
            raise self._damaged(stage, key, str(error)) from None
        return self._decoded(stage, key, _any_record) if found is None else found

    def verify(self, stage: str, key: str) -> None:
        """Read an artifact of either kind in full; StoreError if anything of it is missing or damaged."""
        found = self._decoded(stage, key, _decode_any)
        if isinstance(found, Manifest):
            for name, digest in found.files.items():
                self._blob(stage, key, name, digest)

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact was committed; its content is not looked at."""
        return self._objects.exists(artifact_path(stage, key))

    def keys(self, stage: str) -> set[str]:
        """Keys of all artifacts of a stage, by one listing."""
        names = (path.rpartition("/")[2] for path in self._objects.list(stage_folder(stage)))
        return {name for name in names if is_key(name)}

    def mark(self, stage: str, label: str, key: str) -> None:
        """Note that an artifact belongs to `label`, a content key of what artifacts share; before it is committed."""
        self._objects.create(mark_path(stage, label, key), b"")

    def marked(self, stage: str) -> dict[str, set[str]]:
        """Keys by label, by one listing. A key may be of an artifact that was dropped or never committed."""
        found: dict[str, set[str]] = {}
        for path in self._objects.list(mark_folder(stage)):
            label, key = path.split("/")[-2:]
            if is_key(label) and is_key(key):
                found.setdefault(label, set()).add(key)
        return found

    def drop(self, stage: str, key: str) -> None:
        """Forget an artifact, so that it is made again; for --repair alone."""
        self._objects.delete(artifact_path(stage, key))

    def discard(self, stage: str, key: str) -> None:
        """Delete an artifact with its files; for checkpoints, whose files nobody else has."""
        data = self._objects.read(artifact_path(stage, key))
        self._objects.delete(artifact_path(stage, key))
        if data is None or is_shard(data):
            return
        try:
            blobs = decode_manifest(data).files.values()
        except DamageError:
            return
        for digest in blobs:
            self._objects.delete(blob_path(digest))

    def write_doc(self, path: str, data: bytes) -> None:
        """Put a document, over the one before; `path` is studies/<run>/..."""
        self._objects.replace(doc_path(path), data)

    def read_doc(self, path: str) -> bytes:
        """A document's bytes; StoreError if there is none."""
        data = self._objects.read(doc_path(path))
        if data is None:
            raise StoreError(f"there is no document {self._objects.where(path)}; check the name of the run")
        return data

    def delete_doc(self, path: str) -> None:
        """Remove a document, if it is there."""
        self._objects.delete(doc_path(path))

    def list_docs(self, prefix: str) -> list[str]:
        """Paths of all documents below a folder (studies/, studies/<run>), sorted."""
        folder = prefix.rstrip("/")
        return sorted(self._objects.list(folder if folder == "studies" else doc_path(folder)))

    def lease(self, name: str, owner: str, ttl_s: float, wait_s: float = 0.0) -> Lease:
        """Hold `name` alone, renewed in a thread until the end of `with`.

        Raises LeaseError, which names the holder, if another still holds it after `wait_s`.
        """
        return Lease(objects_at(self.root, hasty=True), name, owner, ttl_s, wait_s)

    def _decoded(self, stage: str, key: str, decode: Callable[[bytes], _T]) -> _T:
        path = artifact_path(stage, key)
        data = self._objects.read(path)
        if data is None:
            raise StoreError(f"{stage} {key} is not in the store ({self._objects.where(path)}); run its stage first")
        try:
            return decode(data)
        except DamageError as error:
            raise self._damaged(stage, key, str(error)) from None

    def _damaged(self, stage: str, key: str, why: str) -> StoreError:
        where = self._objects.where(artifact_path(stage, key))
        return StoreError(f"{stage} {key} is damaged: {why}; it lies at {where}; run again with --repair to rebuild it")

    def _put_blob(self, data: bytes) -> None:
        path = blob_path(blob_digest(data))
        # A damaged blob is mended here: its name says what its bytes must be, so putting them again is always right.
        if not self._objects.create(path, data) and self._objects.read(path) != data:
            self._objects.replace(path, data)

    def _blob(self, stage: str, key: str, name: str, digest: str) -> bytes:
        data = self._objects.read(blob_path(digest))
        if data is None:
            raise self._damaged(stage, key, f"its file {name!r} is missing ({blob_path(digest)})")
        if blob_digest(data) != digest:
            raise self._damaged(stage, key, f"its file {name!r} does not match its digest ({blob_path(digest)})")
        return data


def _dated(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, "created": datetime.now(UTC).isoformat(timespec="seconds")}


def _decode_any(data: bytes) -> Manifest | tuple[pa.Table, dict[str, Any]]:
    return decode_shard(data) if is_shard(data) or not data.startswith(b"{") else decode_manifest(data)


def _any_record(data: bytes) -> dict[str, Any]:
    found = _decode_any(data)
    return found.record if isinstance(found, Manifest) else found[1]


def _write_whole(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        staged.write_bytes(data)
        os.replace(staged, target)
    finally:
        staged.unlink(missing_ok=True)
