"""Look at every node of a cluster and say what to change.

    ray job submit -- python jobs/doctor.py STUDY [--set KEY=VALUE]

Takes what `metagen doctor` takes, and ends with its exit code.
"""

import sys

from metagen_ray.cli import run

if __name__ == "__main__":
    run(["doctor", *sys.argv[1:]])
