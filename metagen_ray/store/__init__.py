"""Artifacts on local disk, NFS, S3 or GCS: written once, listed to resume; leases. Knows nothing of what is stored.

`open_store` turns a root into a `Store`, `join_store` in the processes of a run; `content_key` turns what decides an
artifact's content into its name.
"""

from metagen_ray.store.keys import content_key
from metagen_ray.store.leases import Lease
from metagen_ray.store.store import FORMAT, Store, join_store, open_store

__all__ = ["FORMAT", "Lease", "Store", "content_key", "join_store", "open_store"]
