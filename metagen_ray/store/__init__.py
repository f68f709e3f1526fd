"""Artifacts on local disk, NFS, S3 or GCS: written once, listed to resume; leases. Knows nothing of what is stored.

`open_store` turns a root into a `Store`; `content_key` turns what decides an artifact's content into its name.
"""

from metagen_ray.store.keys import content_key
from metagen_ray.store.leases import Lease
from metagen_ray.store.store import FORMAT, Store, open_store

__all__ = ["FORMAT", "Lease", "Store", "content_key", "open_store"]
