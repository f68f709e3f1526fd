"""Shards that fail: tried again, then given up one by one. Knows no stage; the caller does the work."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from metagen_ray import metrics
from metagen_ray.errors import ShardsFailed
from metagen_ray.progress import say
from metagen_ray.stages.plan import AdapterShard, Ask, JudgeShard

ATTEMPTS, BACKOFF_S = 3, 2.0  # of a shard in one run
SYSTEMIC = 4  # so many failed shards, and most of a whole pass: the app, the store or the recipe is broken
Shard = TypeVar("Shard", AdapterShard, Ask, JudgeShard)


def patiently(
    run: str, stage: str, missing: Sequence[Shard], whole: int, work: Callable[[list[Shard]], None]
) -> dict[str, str]:
    """Do shards, and those that fail again, ATTEMPTS times at most; why the rest was given up, by key.

    `whole` counts the pass with what was done earlier. Raises ShardsFailed where most of that fails: then it is not a
    matter of single shards. One bad adapter is all that is missing in a run that is repeated, and most of no pass.
    """
    left = list(missing)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            work(left)
            return {}
        except ShardsFailed as error:
            reasons = error.reasons
            if len(reasons) >= SYSTEMIC and 2 * len(reasons) > whole:
                raise
        left = [shard for shard in left if shard.key in reasons]
        if attempt < ATTEMPTS:
            say(
                f"{stage}: {len(left)} failed, again ({attempt + 1} of {ATTEMPTS}); {next(iter(reasons.values()))}",
                stage=stage,
            )
            metrics.count("metagen_retries", len(left), run=run, stage=stage)
            time.sleep(BACKOFF_S * 2 ** (attempt - 1))
    say(f"{stage}: {len(left)} given up after {ATTEMPTS} attempts", stage=stage)
    return reasons
