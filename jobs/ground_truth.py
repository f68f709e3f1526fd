"""Ask and judge what a study's adapters say, inside a Ray job.

    ray job submit -- python jobs/ground_truth.py STUDY [--set KEY=VALUE]

Takes what `metagen run` takes, and ends with its exit code.
"""

import sys

from metagen_ray.cli import run

if __name__ == "__main__":
    run(["run", "--only", "ground_truth", *sys.argv[1:]])
