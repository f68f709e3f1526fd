"""One pass over shards with Ray Data: dealt evenly to async workers, every shard ends as an outcome. Knows no stage.

A worker has several shards in hand, so that an engine is never short of prompts while one ends. Every row is a block of
its own, else one worker gets them all. A worker never raises for a shard, since one exception would end the whole pass:
what fails comes back as an outcome with its reason.
"""

import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

import ray

from metagen_ray.errors import ShardsFailed, UserError
from metagen_ray.nodes import ASKER_CPUS
from metagen_ray.study import Resources

Row = dict[str, Any]


class ShardWorker(Protocol):
    """Does shards, several at once in one event loop, and commits them; returns figures for the ledger."""

    async def do(self, row: Row) -> Mapping[str, float]:
        """Commit the shard."""
        ...


class _Actor:
    """What Ray Data calls: a worker, with failures turned into outcomes."""

    def __init__(self, make: Callable[..., ShardWorker], arguments: Mapping[str, Any]) -> None:
        self._worker = make(**arguments)
        self._node = ray.util.get_node_ip_address()

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        for row in batch["row"]:
            # As text: figures differ between shards, and a column has one type.
            yield {"outcome": [json.dumps(await self._outcome(dict(row)))]}

    async def _outcome(self, row: Row) -> Row:
        began = time.monotonic()
        outcome: Row = {"key": row["key"], "reason": "", "figures": {}}
        try:
            outcome["figures"] = {**await self._worker.do(row), f"shards on {self._node}": 1}
        except (UserError, OSError, ValueError) as error:
            outcome["reason"] = f"{type(error).__name__}: {error}"
        return {**outcome, "seconds": time.monotonic() - began}


def run_shards(
    what: str,
    make: Callable[..., ShardWorker],
    arguments: Mapping[str, Any],
    rows: Sequence[Row],
    resources: Resources,
    on_outcome: Callable[[Row], None],
) -> None:
    """Do every row (a dict with a `key`) and report each outcome as it comes.

    Raises ShardsFailed after all others are done if some failed.
    """
    if not rows:
        return
    _quiet()
    dataset = ray.data.from_items([{"row": row} for row in rows], override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(make, dict(arguments)),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(
            size=min(resources.askers, len(rows)), max_concurrent_calls_per_actor=resources.shards_at_once
        ),
        num_cpus=ASKER_CPUS,
    )
    failed: dict[str, str] = {}
    for row in dataset.iter_rows():
        outcome = json.loads(row["outcome"])
        on_outcome(outcome)
        if outcome["reason"]:
            failed[outcome["key"]] = outcome["reason"]
    if failed:
        raise ShardsFailed(f"{what}, shards", failed, len(rows))


def _quiet() -> None:
    """Our own progress speaks for the pass; Ray Data's bars, plans and advice stay out of a job's log."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    logging.getLogger("ray.data").setLevel(logging.ERROR)
