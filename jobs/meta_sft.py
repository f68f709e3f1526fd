"""Train a study's predictor, inside a Ray job.

    ray job submit -- python jobs/meta_sft.py STUDY [--set KEY=VALUE]

Takes what `metagen run` takes, and ends with its exit code.
"""

import sys

from metagen_ray.cli import run

if __name__ == "__main__":
    run(["run", "--only", "meta_sft", *sys.argv[1:]])
