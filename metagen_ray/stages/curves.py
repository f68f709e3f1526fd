"""The curves of a run's trainings: metrics.jsonl and a TensorBoard file beside the run, trackers where wished.

A tracker that fails is told of once and then left alone, as is a curve that cannot be written: no study ends for want
of one.
"""

import importlib
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from metagen_ray.errors import InputError, StoreError
from metagen_ray.progress import say
from metagen_ray.store import Store

FLUSH_S = 30.0  # an object store knows no appending: a curve is written whole each time
EVENTS = "events.out.tfevents.0000000000.metagen"  # one file of a fixed name, so that a later one takes its place
TRACKERS = ("wandb", "mlflow")
Point = tuple[int, float]  # step, loss


class Tracker(Protocol):
    """A service that keeps curves."""

    def curve(self, stage: str, name: str, points: Sequence[Point]) -> None:
        """One finished training."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class Curves:
    """All trainings of one run; `trackers` are of TRACKERS. Use as a context manager."""

    def __init__(self, store: Store, run: str, trackers: Iterable[str] = (), facts: Mapping[str, Any] = {}) -> None:
        self._store, self._run = store, run
        self._trackers = {name: MAKERS[name](run, facts) for name in trackers}

    def __enter__(self) -> "Curves":
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._trackers):
            self._try(name, lambda tracker: tracker.close())

    def write(self, stage: str, name: str, losses: Sequence[float]) -> None:
        """A finished training: its loss after each optimizer step."""
        points = list(enumerate(losses, 1))
        if not points:  # it stood in the store already, with its curve
            return
        self._put(stage, name, points)
        for tracker in list(self._trackers):
            self._try(tracker, lambda t: t.curve(stage, name, points))

    def live(self, stage: str, name: str) -> Callable[[int, float], None]:
        """What to call with (step, loss) while a long training runs; `write` its whole curve at the end."""
        points: list[Point] = []
        written = time.monotonic()

        def point(step: int, loss: float) -> None:
            nonlocal written
            points.append((step, loss))
            if time.monotonic() - written > FLUSH_S:
                self._put(stage, name, points)
                written = time.monotonic()

        return point

    def _put(self, stage: str, name: str, points: Sequence[Point]) -> None:
        folder = f"studies/{self._run}/training/{stage}/{name}"
        lines = (json.dumps({"stage": stage, "training": name, "step": s, "loss": loss}) for s, loss in points)
        try:
            self._store.write_doc(f"{folder}/metrics.jsonl", "".join(f"{line}\n" for line in lines).encode())
            self._store.write_doc(f"{folder}/{EVENTS}", tensorboard_events(points, time.time()))
        except StoreError as error:
            say(f"the curve of {stage} {name} is not kept: {error}")

    def _try(self, name: str, do: Callable[[Tracker], None]) -> None:
        try:
            do(self._trackers[name])
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, its own errors among them
            del self._trackers[name]
            say(f"{name} takes no more curves: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def tensorboard_events(points: Sequence[Point], wall: float) -> bytes:
    """A TensorBoard file with the scalar `loss`; `wall` in seconds since 1970 stands at every point."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    # Generated, so no type checker knows them.
    Event: Any = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
    Summary: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(wall_time=wall, file_version="brain.Event:2").SerializeToString())
    for step, loss in points:
        summary = Summary(value=[Summary.Value(tag="loss", simple_value=loss)])
        writer.write(Event(wall_time=wall, step=step, summary=summary).SerializeToString())
    return file.getvalue()


class Wandb:
    """Weights & Biases: a run for each stage, grouped by study run; an adapter has an axis of steps of its own."""

    def __init__(self, run: str, facts: Mapping[str, Any]) -> None:
        self._wandb = _tracker_module("wandb")
        self._run, self._facts, self._open = run, dict(facts), {}

    def curve(self, stage: str, name: str, points: Sequence[Point]) -> None:
        """Log the curve under the training's name."""
        if stage not in self._open:
            self._open[stage] = self._wandb.init(
                project="metagen",
                group=self._run,
                name=f"{self._run} {stage}",
                id=f"{self._run}-{stage}",
                resume="allow",
                config=self._facts,
                reinit="create_new",
            )
        run = self._open[stage]
        run.define_metric(f"{name}/step", hidden=True)
        run.define_metric(f"{name}/loss", step_metric=f"{name}/step")
        for step, loss in points:
            run.log({f"{name}/step": step, f"{name}/loss": loss})

    def close(self) -> None:
        """End the runs; waits until they are sent."""
        for run in self._open.values():
            run.finish()


class Mlflow:
    """MLflow: an experiment for the study run, a run for each training."""

    def __init__(self, run: str, facts: Mapping[str, Any]) -> None:
        self._mlflow = _tracker_module("mlflow")
        self._run, self._facts = run, dict(facts)

    def curve(self, stage: str, name: str, points: Sequence[Point]) -> None:
        """Log the curve as the metric `loss` of a run named after the training."""
        experiment = self._mlflow.set_experiment(f"metagen/{self._run}")
        client = self._mlflow.MlflowClient()
        run = client.create_run(experiment.experiment_id, run_name=f"{stage}/{name}")
        now = int(1000 * time.time())
        metrics = [self._mlflow.entities.Metric("loss", loss, now, step) for step, loss in points]
        params = [self._mlflow.entities.Param(key, str(value)) for key, value in self._facts.items()]
        client.log_batch(run.info.run_id, metrics[:0], params)
        for start in range(0, len(metrics), 1000):  # the most that a server takes at once
            client.log_batch(run.info.run_id, metrics[start : start + 1000])
        client.set_terminated(run.info.run_id)

    def close(self) -> None:
        """Every curve was sent when it came."""


MAKERS: Mapping[str, Callable[[str, Mapping[str, Any]], Tracker]] = {"wandb": Wandb, "mlflow": Mlflow}


def _tracker_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"resources.track names {name}, which is not installed here; pip install 'metagen-ray[{name}]', or leave "
            "it out"
        ) from None
