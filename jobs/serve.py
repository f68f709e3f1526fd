"""Bring a study's app up inside a cluster, where it stays until `jobs/down.py`.

    ray job submit -- python jobs/serve.py STUDY [--set KEY=VALUE]

Takes what `metagen serve` takes, and ends with its exit code.
"""

import sys

from metagen_ray.cli import run

if __name__ == "__main__":
    run(["serve", *sys.argv[1:]])
