"""Training on a Ray cluster: lanes of adapters side by side, meta-SFT over data-parallel workers. The only Ray here.

A lane is one TorchTrainer: its processes load the base once and train a share of the jobs, bank by bank, on one
DeepSpeed engine; each adapter is committed by the worker that trained it. What was committed stays, so a lane that dies
loses one bank at most.
"""

import os
import queue
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import ActorUnavailableError, RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metagen_ray.cost.bank import bank_memory, choose_bank, deal
from metagen_ray.cost.decoder import read_decoder
from metagen_ray.errors import StageError, StoreError, UserError
from metagen_ray.store import join_store
from metagen_ray.study import SHARDED_STAGE, Recipe, Resources
from metagen_ray.training.core import OnStep
from metagen_ray.training.lora import LoraShape
from metagen_ray.training.rows import Tree
from metagen_ray.training.shelf import StoreShelf
from metagen_ray.training.worker import (
    AdapterJob,
    MetaResult,
    Outcome,
    Trainer,
    throttled,
    train_meta,
    train_share,
)

START_TIMEOUT_S = 300.0  # for the workers of one trainer to get their CPUs and GPUs and import torch
COLLECTIVE_TIMEOUT_S = 600  # a peer that is silent for so long is gone
CALL_RETRIES = 5  # of a word to or from the driver that the network swallowed
RESTARTS = 2  # by Ray Train itself, of workers that died
TURNS = 6  # of a trainer whose controller died or could not start its workers: most such turns last seconds
TURN_WAIT_S, LONGEST_WAIT_S = 1.0, 8.0
QUIET = {
    # The controller looks at its workers every 2 s by default, which is also what every short run waits at its end.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(START_TIMEOUT_S),
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


@dataclass(frozen=True, slots=True)
class Site:
    """Where workers find the base and how they compute; plain values that travel to every worker."""

    base_dir: str
    zero_stage: int
    threads: int


def run_lanes(
    base_dir: str | Path,
    jobs: Sequence[AdapterJob],
    resources: Resources,
    store_root: str,
    stage: str,
    run_name: str,
    on_progress: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Train all jobs in `resources.lanes` lanes and commit each adapter under (`stage`, job key); one outcome per job.

    `on_progress` is called in this process for every finished job. `run_name` is what Ray calls it.
    """
    shares = [share for share in deal_jobs(jobs, resources.lanes) if share]
    site = _site(base_dir, resources)
    settings = [
        {
            "site": site,
            "jobs": ray.put(share),
            "store_root": store_root,
            "stage": stage,
            "bank": resources.bank,
            "most": -(-len(jobs) // resources.lanes),
        }
        for share in shares
    ]
    outcomes: dict[str, Outcome] = {}

    def finished(outcome: Outcome) -> None:
        earlier = outcomes.get(outcome.key)
        if earlier is not None and earlier.ok:  # a lane that was started again tells of all that it finds done
            return
        outcomes[outcome.key] = outcome
        if on_progress:
            on_progress(outcome)

    with _Runs(resources, run_name) as runs:
        threads = [runs.start(f"lane{i}", _lane_loop, s, resources.workers_per_lane) for i, s in enumerate(settings)]
        for message in runs.messages(threads):
            finished(Outcome(*message))
        for share, thread in zip(shares, threads, strict=True):
            for job in share:
                if job.key not in outcomes:
                    finished(Outcome(job.key, False, thread.failure or "the lane ended without a word about it"))
    return [outcomes[job.key] for job in jobs]


def run_meta(
    base_dir: str | Path,
    epochs: Sequence[Sequence[Tree]] | Callable[[int], Sequence[Tree]],
    recipe: Recipe,
    seed: int,
    resources: Resources,
    run_name: str,
    inner_trees: Sequence[Tree] = (),
    keep_best: bool = False,
    on_progress: OnStep | None = None,
    shelf: StoreShelf | None = None,
) -> MetaResult:
    """Train one adapter data-parallel over `resources.meta_workers`; `epochs` gives the trees of each epoch.

    With a `shelf` a later call goes on from the last stand. StageError if the training fails for good.
    """
    laid = [list(epochs(e) if callable(epochs) else epochs[e]) for e in range(recipe.epochs)]
    settings = {
        "site": _site(base_dir, resources),
        "work": ray.put((laid, list(inner_trees))),
        "recipe": recipe,
        "seed": seed,
        "keep_best": keep_best,
        "shelf": shelf,
    }
    with _Runs(resources, run_name) as runs:
        thread = runs.start("meta", _meta_loop, settings, resources.meta_workers)
        for step in runs.messages([thread]):
            if on_progress:
                on_progress(*step)
        if isinstance(thread.result, MetaResult):
            return thread.result
        raise StageError(f"meta-SFT failed: {thread.failure or thread.result}")


def deal_jobs(jobs: Sequence[AdapterJob], lanes: int) -> list[list[AdapterJob]]:
    """Jobs to lanes, the most expensive first to whoever has least."""
    return [[jobs[n] for n in share] for share in deal([job.cost() for job in jobs], lanes)]


def _site(base_dir: str | Path, resources: Resources) -> Site:
    return Site(str(Path(base_dir).resolve()), resources.zero_stage, resources.threads)


class _Runs:
    """TorchTrainer runs of one call: their scratch folder, and one queue on which workers speak to this process.

    Messages are tuples of plain values: the queue is a process, and a class of ours would make it import torch.
    """

    def __init__(self, resources: Resources, run_name: str) -> None:
        self.resources = resources
        self.name = f"{run_name}-{uuid.uuid4().hex[:8]}"  # Ray Train resumes a name it knows, without being asked

    def __enter__(self) -> "_Runs":
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        # With one node there is nothing to be warned of; the watcher is a process of 115 MiB.
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0" if len(ray.nodes()) == 1 else "1"
        self.scratch = tempfile.TemporaryDirectory(prefix="metagen-train-", ignore_cleanup_errors=True)
        # Beside this process: on another node it would die with that node, and the driver with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_task_retries": CALL_RETRIES, "scheduling_strategy": here}
        self.queue = Queue(actor_options=options)
        return self

    def __exit__(self, *_: object) -> None:
        self.queue.shutdown(force=True)
        self.scratch.cleanup()

    def start(self, part: str, loop: Callable[[dict], Any], settings: dict, workers: int) -> "_Run":
        """Begin a trainer in a thread of its own."""
        run = _Run(lambda turn: self._trainer(f"{part}-{turn}", loop, settings, workers))
        run.start()
        return run

    def _trainer(self, part: str, loop: Callable[[dict], Any], settings: dict, workers: int) -> TorchTrainer:
        need = self.resources
        return TorchTrainer(
            loop,
            train_loop_config={**settings, "queue": self.queue},
            torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=need.gpus_per_worker > 0,
                resources_per_worker={"CPU": need.cpus_per_worker, **_gpu(need)},
                label_selector=need.train_nodes or None,
                placement_strategy="SPREAD" if workers > 1 and not need.gpus_per_worker else "PACK",
            ),
            run_config=ray.train.RunConfig(
                name=f"{self.name}-{part}",
                storage_path=self.scratch.name,
                failure_config=ray.train.FailureConfig(max_failures=RESTARTS, controller_failure_limit=RESTARTS),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )

    def messages(self, runs: Sequence["_Run"]) -> Iterator[Any]:
        """What workers tell, until all runs have ended and the queue is empty."""
        while True:
            ended = not any(run.is_alive() for run in runs)  # asked before the queue: no word is lost between the two
            try:
                yield self.queue.get(timeout=0.2)
            except queue.Empty:
                if ended:
                    return
            except ActorUnavailableError:  # a word may be lost; what was done stands in the store
                if ended:
                    return


class _Run(threading.Thread):
    """One TorchTrainer.fit with what came of it.

    Ray Train starts workers again that die. A controller that died, or that could not start its workers, nobody starts
    again: that is done here, with a fresh name, and the workers go on from what is committed.
    """

    def __init__(self, make: Callable[[int], TorchTrainer]) -> None:
        super().__init__(daemon=True)
        self.make = make
        self.result: Any = None
        self.failure = ""

    def run(self) -> None:
        """Fit; a failure is kept for the caller, who is another thread."""
        for turn in range(TURNS):
            began = time.monotonic()
            try:
                self.result, self.failure = self.make(turn).fit().return_value, ""
                return
            except WorkerGroupError as error:
                self.failure = _last_line(error)
                return
            except (ControllerError, RayError) as error:
                self.failure = _last_line(error)
                if isinstance(error, ControllerError) and time.monotonic() - began > START_TIMEOUT_S:
                    return  # there was no room for its workers, and there would be none
                time.sleep(min(LONGEST_WAIT_S, TURN_WAIT_S * 2**turn))


def _lane_loop(settings: dict) -> None:
    site, outbox = settings["site"], settings["queue"]
    store, stage = join_store(settings["store_root"]), settings["stage"]
    done, jobs = store.keys(stage), ray.get(settings["jobs"])
    speaks = ray.train.get_context().get_world_rank() == 0
    train_share(
        partial(_make_trainer, site),
        jobs,
        commit=lambda key, files, record: store.put_files(stage, key, files, record),
        tell=lambda outcome: outbox.put(astuple(outcome)) if speaks else None,
        is_done=done.__contains__,
        bank=settings["bank"] or _bank_size(site, jobs, settings["most"]),
    )


def _bank_size(site: Site, jobs: Sequence[AdapterJob], most: int) -> int:
    """As many adapters as pay on a CPU, or as fit on this worker's GPU; `most` are wanted."""
    import torch

    if not torch.cuda.is_available():
        return choose_bank(most, 1)
    decoder, recipe = read_decoder(Path(site.base_dir)), jobs[0].recipe
    trees = [tree for job in jobs for tree in job.trees]
    step = recipe.batch_rows / max(1, sum(len(tree.branches) for tree in trees))
    read = step * sum(tree.read_tokens() for tree in trees)
    logits = step * sum(tree.completion_tokens() for tree in trees)
    adapter = decoder.adapter_parameters(recipe.rank, recipe.targets)
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    shards = ray.train.get_context().get_world_size() if site.zero_stage == SHARDED_STAGE else 1
    return choose_bank(most, 1, bank_memory(decoder, total, read, logits, adapter, shards))


def _meta_loop(settings: dict) -> MetaResult | str | None:
    """What came of it, or why nothing did: a user's error would be the same after a restart, and is that of all ranks.

    A store that fails does so for one rank, and may be well a moment later: the others, who wait for that rank, start
    again with it.
    """
    try:
        return _meta_result(settings)
    except StoreError:
        raise
    except UserError as error:
        return str(error)


def _meta_result(settings: dict) -> MetaResult | None:
    epochs, inner_trees = ray.get(settings["work"])
    trainer = _make_trainer(settings["site"], [LoraShape.of(settings["recipe"])])
    rank = ray.train.get_context().get_world_rank()
    outbox = settings["queue"]
    on_step = throttled(lambda *step: outbox.put(step)) if rank == 0 else None
    result = train_meta(
        trainer,
        epochs,
        settings["recipe"],
        settings["seed"],
        inner_trees,
        settings["keep_best"],
        on_step,
        settings["shelf"],
        warned=_is_preempted,
    )
    nodes = _nodes_by_rank()
    return replace(result, nodes=nodes) if rank == 0 else None


def _is_preempted() -> bool:
    """Whether a node of this trainer is about to be taken away; a barrier, asked by all ranks together."""
    return ray.train.get_preemption_info() is not None


def _nodes_by_rank() -> tuple[str, ...]:
    import torch.distributed as dist

    own = ray.util.get_node_ip_address()
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return (own,)
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return tuple(found)


def _make_trainer(site: Site, shapes: Sequence[LoraShape]) -> Trainer:
    """Load the base and start DeepSpeed; imports stay here, so that the driver pays for none of them."""
    import torch
    from ray.train.torch import get_device

    from metagen_ray.training.base import AdaptedModel, load_base
    from metagen_ray.training.zero import DeepSpeedEngine

    torch.set_num_threads(site.threads)
    device, sharded = get_device(), site.zero_stage == SHARDED_STAGE
    base = load_base(site.base_dir, device, sharded)
    model = AdaptedModel(base, shapes, "cpu" if sharded else device)
    return Trainer(model, DeepSpeedEngine(model, site.zero_stage, device))


def _gpu(resources: Resources) -> dict[str, float]:
    return {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
