"""End what outlives a job: the app and long-lived actors.

    ray job submit -- python jobs/down.py

Takes what `metagen down` takes, and ends with its exit code.
"""

import sys

from metagen_ray.cli import run

if __name__ == "__main__":
    run(["down", *sys.argv[1:]])
