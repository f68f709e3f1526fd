"""A Ray of this process alone, in a folder of its own, for tests that need a cluster and no app."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def local_ray(cpus: int, memory: int | None = None) -> Iterator[str]:
    """Its address; `memory` in bytes as the node shall report it."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            _temp_dir=folder,
            _memory=memory,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()
