"""Run a study inside a Ray job.

    ray job submit --working-dir . -- python jobs/study.py STUDY [--set KEY=VALUE]

Takes what `metagen run` takes, and ends with its exit code.
"""

import sys

from metagen_ray.cli import run

if __name__ == "__main__":
    run(["run", *sys.argv[1:]])
