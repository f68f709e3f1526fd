"""A node that is about to be taken back: meta-SFT is saved in time, and goes on elsewhere to the same losses."""

import importlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from metagen_ray.spot import drain
from metagen_ray.store import open_store
from metagen_ray.study import Recipe, Resources
from metagen_ray.training.lanes import run_meta
from metagen_ray.training.lora import LoraShape
from metagen_ray.training.shelf import HURRIED_S, STAGE, StoreShelf
from metagen_ray.training.worker import train_meta
from tests.tiny import make_tiny_model
from tests.training.test_lanes import plain_trainer, trees

pytestmark = [pytest.mark.slow, pytest.mark.machine, pytest.mark.timeout(600)]
EPOCHS = 1
LONG = Recipe(rank=4, alpha=8, lr=1e-4, epochs=EPOCHS, batch_rows=1, schedule="linear", dropout=0.0)
NOTICE_S = 60


def test_training_is_saved_at_a_notice_and_goes_on_without_the_node(tmp_path: Path) -> None:
    model_dir = make_tiny_model(tmp_path / "tiny")
    epochs = [[tree for n in range(160) for tree in trees(1000 * e + n)] for e in range(EPOCHS)]
    shelf = StoreShelf(str(tmp_path / "store"), "c" * 64, 10**6)
    store, begun, found = open_store(str(tmp_path / "store")), threading.Event(), {}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        workers = [cluster.add_node(num_cpus=1) for _ in range(3)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        resources = Resources(meta_workers=2, cpus_per_worker=1)

        def train() -> None:
            found["result"] = run_meta(
                model_dir, epochs, LONG, 3, resources, "test", on_progress=lambda *_: begun.set(), shelf=shelf
            )

        thread = threading.Thread(target=train, daemon=True)
        thread.start()
        assert begun.wait(240)
        busy = next(node for node in workers if _in_use(node.node_id))
        with _held("RayTrainWorker"):  # else a quick machine trains to the end before anybody looks
            drain(cluster.address, busy.node_id, NOTICE_S)
            time.sleep(HURRIED_S)
        end = time.monotonic() + NOTICE_S - HURRIED_S
        while not store.keys(STAGE):
            assert time.monotonic() < end and thread.is_alive(), "nothing was saved within the notice"
            time.sleep(0.2)
        (saved,) = (store.record(STAGE, key)["steps"] for key in store.keys(STAGE))
        cluster.remove_node(busy, allow_graceful=False)
        thread.join(400)
    finally:
        ray.shutdown()
        cluster.shutdown()
    whole = train_meta(plain_trainer(model_dir, [LoraShape.of(LONG)]), epochs, LONG, 3)
    per_epoch = len(whole.losses) // EPOCHS
    assert 0 < saved < per_epoch, "the notice came too late to show anything"
    assert np.allclose(found["result"].losses, whole.losses, atol=1e-4)


@contextmanager
def _held(name: str) -> Iterator[None]:
    """Processes of ours stand still: one step that takes long."""
    held = [p for p in psutil.Process().children(recursive=True) if name in " ".join(p.cmdline())]
    assert held
    for process in held:
        process.suspend()
    try:
        yield
    finally:
        for process in held:
            process.resume()


def _in_use(node_id: str) -> bool:
    state: Any = importlib.import_module("ray._private.state")
    return state.available_resources_per_node()[node_id].get("CPU", 0.0) < 1.0
