"""How far a run is, for whoever reaches the head and not the store.

    ray job submit -- python jobs/status.py RUN --store STORE

Takes what `metagen status` takes, and ends with its exit code.
"""

import sys

from metagen_ray.cli import run

if __name__ == "__main__":
    run(["status", *sys.argv[1:]])
