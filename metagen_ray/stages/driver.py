"""The driver: does what a study's plan is missing, stage by stage, and writes its report. Holds no state of its own.

On one small machine stages take turns: training first, then the app is up to the end. Where training and serving have
resources of their own, they run side by side (stages/arrivals.py has the order). Before each step the nodes are there
that it needs, and nodes that no later step needs are let go.
"""

import getpass
import json
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from metagen_ray import cluster, nodes
from metagen_ray.errors import InputError, PartialError, ShardsFailed, Terminated
from metagen_ray.progress import Progress, about, say, tell
from metagen_ray.stages import answers, judge, meta_sft, object_sft, serve_app
from metagen_ray.stages.accounts import close_ledger
from metagen_ray.stages.answers import AppAddress
from metagen_ray.stages.arrivals import Hands, Wanted, run_overlapped
from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.curves import Curves
from metagen_ray.stages.meter import Meter, gpus_of
from metagen_ray.stages.patience import ATTEMPTS, patiently
from metagen_ray.stages.plan import AdapterShard, Ask, JudgeShard, Plan
from metagen_ray.stages.pulse import Pulse
from metagen_ray.stages.report import write_study_report
from metagen_ray.stages.status import Status, repair
from metagen_ray.study import Study

LEASE_TTL_S = 60.0  # a renewal waits for the disk; a loaded one has taken 15 s, and once 40
LEASE_WAIT_S = 70.0  # a killed driver's lease runs out meanwhile
PACKAGES = ("ray", "torch", "transformers", "peft", "deepspeed", "numpy", "pyarrow")


@dataclass
class Ledger:
    """Seconds and figures by stage; stands beside the results. The pulse tells others of them meanwhile.

    `curves` takes the losses of trainings.
    """

    pulse: Pulse
    curves: Curves
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    given_up: dict[tuple[str, str], str] = field(default_factory=dict)  # (stage, key) -> why

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, float]]:
        """Time a stage; figures put into the yielded dict are kept."""
        began, figures = time.monotonic(), {}
        try:
            yield figures
        finally:
            self.stages[name] = {"seconds": round(time.monotonic() - began, 2), **figures}

    def given_up_lines(self) -> list[str]:
        """What was given up and why, for a person."""
        return [f"{stage} {key[:12]}: {reason}" for (stage, key), reason in self.given_up.items()]


def run_study(study: Study, address: str | None = None, repair_damage: bool = False, only: Sequence[str] = ()) -> str:
    """Run a study to its report; returns the run's name. What is in the store already is not computed again.

    `only` names the STEPS that are done, all by default; the report follows where nothing is missing then. InputError
    where a step waits for another that is neither done nor named.
    """
    plan = Plan(StudyContext(study))
    store, run = plan.context.store, study.run_name()
    about(run=run)
    owner = f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"
    with store.lease(f"run-{run}", owner, LEASE_TTL_S, LEASE_WAIT_S) as lease:
        store.write_doc(f"studies/{run}/study.yaml", study.to_yaml().encode())
        if repair_damage:
            for line in repair(plan):
                say(f"repair: dropped {line}")
        facts = {"study": study.name, "fingerprint": study.fingerprint(), "seed": study.seed, **versions()}
        with Curves(store, run, study.resources.track, facts) as curves, Pulse(store, run, owner) as pulse:
            ledger, present = Ledger(pulse, curves), Status(plan).present
            kept = _compute(plan, ledger, address, lease.check, only)
            _write_given_up(plan, ledger)
            if not only or Status(kept).complete():
                with ledger.stage("analyse and report"):
                    write_study_report(kept, versions(), ledger.stages, ledger.given_up_lines())
            lines = close_ledger(kept, ledger.stages, present)
    for line in lines:
        say(line)
    _say_spared(ledger)
    if ledger.given_up:
        raise PartialError(
            f"{run}: {len(ledger.given_up)} shards were given up after {ATTEMPTS} attempts; the report goes without "
            f"them and what needs them. The first: {ledger.given_up_lines()[0]}. Run again to try them once more"
        )
    return run


def versions() -> dict[str, str]:
    """Versions that stand beside every result."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _compute(plan: Plan, ledger: Ledger, address: str | None, check: Callable[[], None], only: Sequence[str]) -> Plan:
    """Do what is missing; returns the plan without what was given up on the way."""
    status = Status(plan)
    _check_inputs(status, only)
    _write_index(plan)
    if status.complete():
        return plan
    need, chosen = plan.study.resources, [name for name in STEPS if not only or name in only]
    phases = _phases(status, chosen)
    try:
        with ledger.stage("connect"):
            cluster.reach(address)
            nodes.hold(need, phases, phases if need.phases == "together" else phases[:1])
        side_by_side = not only and cluster.overlaps(plan.study)
        with _Serving(plan, ledger, eager=need.phases == "together" and nodes.SERVE in phases) as app:
            if side_by_side:
                try:
                    _side_by_side(plan, status, ledger, app, check)
                except ShardsFailed as error:
                    say(f"{error}; going on step by step")
                ledger.given_up.clear()  # each step tries what is left once more, and decides
            for at, name in enumerate(chosen):
                check()
                _make_room(plan, chosen[at:], ledger, app)
                plan = STEPS[name](plan, Status(plan), ledger, app)
        return plan
    finally:
        nodes.release()


def _phases(status: Status, steps: Sequence[str]) -> list[str]:
    """Those of the steps with something missing, in the order they come up."""
    left = [name for name in status.steps_left() if name in steps]
    return list(dict.fromkeys(nodes.TRAIN if name in TRAINS else nodes.SERVE for name in left))


def _make_room(plan: Plan, steps: Sequence[str], ledger: Ledger, app: "_Serving") -> None:
    """Have the nodes of the first of these steps up, and no more than they all need; in turn, without the app."""
    need, now = plan.study.resources, _phases(Status(plan), steps[:1])
    if not now:
        return
    in_turn = need.phases == "in_turn"
    if in_turn and now == [nodes.TRAIN]:
        app.rest()
    with ledger.stage(f"wait for nodes of {steps[0]}") if in_turn else nullcontext():
        nodes.hold(need, _phases(Status(plan), steps), now if in_turn else ())


def _check_inputs(status: Status, only: Sequence[str]) -> None:
    """Refuse steps that would find nothing to read."""
    unknown = [name for name in only if name not in STEPS]
    if unknown:
        raise InputError(f"no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    missing = {line.stage: line.missing for line in status.lines()}
    for name in only:
        for needed, stages in NEEDS[name].items():
            left = sum(missing[stage] for stage in stages)
            if left and needed not in only:
                raise InputError(
                    f"step {name} waits for {left} shards of {needed}; run that step first, or name it too"
                )


def _write_given_up(plan: Plan, ledger: Ledger) -> None:
    """`given_up.json` of the run: what this run has given up, by stage and key; none where all was done."""
    path, store = f"studies/{plan.study.run_name()}/given_up.json", plan.context.store
    if not ledger.given_up:
        store.delete_doc(path)
        return
    by_stage: dict[str, dict[str, str]] = {}
    for (stage, key), reason in ledger.given_up.items():
        by_stage.setdefault(stage, {})[key] = reason
    store.write_doc(path, json.dumps(by_stage, indent=1).encode())


def _say_spared(ledger: Ledger) -> None:
    """How many answers needed no judging."""
    passes = [figures for name, figures in ledger.stages.items() if name.startswith("judge ")]
    if passes:
        read, judged = (sum(figures[what] for figures in passes) for what in ("read", "judged"))
        say(f"judging: {judged:,.0f} of {read:,.0f} answers, {read - judged:,.0f} spared; equal ones are graded once")


def _write_index(plan: Plan) -> None:
    """Keys of every shard by stage, for a person and for other programs."""
    index = {
        "object_sft": {a.domain: a.key for a in plan.adapters},
        "meta_sft": plan.meta,
        "ground_truth": [a.key for a in plan.truth],
        "predict": [a.key for a in (*plan.untrained, *plan.predictions)],
        "judge": [s.key for shards in plan.judged.values() for s in shards],
    }
    plan.context.store.write_doc(f"studies/{plan.study.run_name()}/index.json", json.dumps(index, indent=1).encode())


class _Serving:
    """The app, waited for by whoever asks it; `eager`: up in the background at once, not when first asked."""

    def __init__(self, plan: Plan, ledger: Ledger, eager: bool) -> None:
        self._plan, self._ledger = plan, ledger
        self._threads = ThreadPoolExecutor(1, "deploy")
        self._app = self._start() if eager else None

    def __enter__(self) -> "_Serving":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the app; in a hurry without waiting for it, or for its start."""
        hurry = kind is Terminated
        self._threads.shutdown(wait=not hurry, cancel_futures=hurry)
        serve_app.down(hurry)

    def __call__(self) -> AppAddress:
        """The app's address, once it answers. Raises what its start raised."""
        self._app = self._app or self._start()
        if not self._app.done():
            with self._ledger.stage("wait for the app"):
                return self._app.result()
        return self._app.result()

    def rest(self) -> None:
        """End the app until it is asked again: something else needs what it holds."""
        if self._app is not None:
            self._app.result()
            serve_app.down()
            self._app = None

    def _start(self) -> "Future[AppAddress]":
        return self._threads.submit(serve_app.up, self._plan)


def _side_by_side(plan: Plan, status: Status, ledger: Ledger, app: _Serving, check: Callable[[], None]) -> None:
    """All that comes before the meta-trained model's predictions; the ledger says that its stages overlapped."""
    before = set(ledger.stages)
    run_overlapped(plan, status, _hands(plan, status, ledger, app, check))
    for name in set(ledger.stages) - before:
        ledger.stages[name]["overlapped"] = 1


def _train(
    plan: Plan, status: Status, ledger: Ledger, app: _Serving, arrived: Callable[[str], None] = lambda key: None
) -> Plan:
    missing = status.missing("object_sft", (*plan.adapters, *plan.second_adapters))
    if not missing:
        return plan

    meter = _meter(plan, ledger, "object_sft", len(missing))
    names = {shard.key: f"{shard.domain}-seed{shard.seed}" for shard in missing}

    def on_outcome(outcome: object_sft.Outcome) -> None:
        _tell_shard("object_sft", outcome.key, outcome.reason if not outcome.ok else "", outcome.seconds)
        if outcome.ok:  # else it is tried again
            progress.advance()
            meter.outcome(True, {"train_tokens": outcome.tokens})
            figures["train_tokens"] = figures.get("train_tokens", 0) + outcome.tokens
            ledger.curves.write("object_sft", names[outcome.key], outcome.losses)
            arrived(outcome.key)

    def work(left: list[AdapterShard]) -> None:
        object_sft.run(plan, left, versions(), on_outcome)

    with ledger.stage("object_sft") as figures, Progress("object_sft", len(missing), "adapters") as progress:
        whole = len(plan.adapters) + len(plan.second_adapters)
        lost = patiently(plan.study.run_name(), "object_sft", missing, whole, work)
    return _without(plan, ledger, meter, "object_sft", lost)


def _truth(plan: Plan, status: Status, ledger: Ledger, app: _Serving) -> Plan:
    plan = _asked(plan, ledger, app, "ground_truth", status.missing("ground_truth", plan.truth), len(plan.truth))
    return _judged(plan, ledger, app, "truth", status)


def _untrained(plan: Plan, status: Status, ledger: Ledger, app: _Serving) -> Plan:
    missing = status.missing("predict", plan.untrained)
    plan = _asked(plan, ledger, app, "predict untrained", missing, len(plan.untrained))
    return _judged(plan, ledger, app, "untrained", status)


def _meta(plan: Plan, status: Status, ledger: Ledger, app: _Serving) -> Plan:
    if plan.meta not in status.present["meta_sft"]:
        meter, live = _meter(plan, ledger, "meta_sft", 1), ledger.curves.live("meta_sft", "meta")
        shown = 0

        def on_step(step: int, steps: int, loss: float) -> None:
            nonlocal shown
            percent = 100 * step // steps
            progress.advance(percent - shown)
            shown = percent
            meter.tick()
            live(step, loss)

        with ledger.stage("meta_sft") as figures, Progress("meta_sft", 100, "percent") as progress:
            result = meta_sft.run(plan, versions(), on_step)
            figures["train_tokens"] = result.tokens
            ledger.curves.write("meta_sft", "meta", result.losses)
        meter.outcome(True, {"train_tokens": result.tokens})
    return plan


def _predict(plan: Plan, status: Status, ledger: Ledger, app: _Serving) -> Plan:
    missing = status.missing("predict", plan.predictions)
    plan = _asked(plan, ledger, app, "predict meta", missing, len(plan.predictions))
    return _judged(plan, ledger, app, "meta", status)


def _asked(plan: Plan, ledger: Ledger, app: _Serving, name: str, missing: list[Ask], whole: int) -> Plan:
    if not missing:
        return plan
    address = app()
    meter = _meter(plan, ledger, name, len(missing))
    with ledger.stage(name) as figures, Progress(name, len(missing)) as progress:
        on_outcome = _counted(figures, progress, meter)

        def work(left: list[Ask]) -> None:
            answers.run_asks(plan, left, address, versions(), on_outcome)

        lost = patiently(plan.study.run_name(), name, missing, whole, work)
    return _without(plan, ledger, meter, name, lost)


def _without(plan: Plan, ledger: Ledger, meter: Meter, stage: str, lost: Mapping[str, str]) -> Plan:
    """The plan without what was given up, which is told and kept for the report."""
    for key, reason in lost.items():
        meter.outcome(False, {})
        ledger.given_up[stage, key] = reason
    return plan.without(lost)


def _judged(
    plan: Plan, ledger: Ledger, app: _Serving, part: str, status: Status, wanted: Callable[[], None] = lambda: None
) -> Plan:
    missing = status.missing("judge", plan.judged[part])
    if not missing:
        return plan
    address = app()
    name = f"judge {part}"
    meter = _meter(plan, ledger, name, len(missing))
    with ledger.stage(name) as figures, Progress(name, len(missing)) as progress:
        on_outcome = _counted(figures, progress, meter, wanted)

        def work(left: list[JudgeShard]) -> None:
            judge.run_judge(plan, left, address, versions(), on_outcome)

        lost = patiently(plan.study.run_name(), name, missing, len(plan.judged[part]), work)
    if lost:  # a judge that cannot grade ends the study
        raise ShardsFailed(f"{name}, shards", lost, len(missing))
    return plan


STEPS = {"object_sft": _train, "ground_truth": _truth, "untrained": _untrained, "meta_sft": _meta, "predict": _predict}
TRAINS = frozenset({"object_sft", "meta_sft"})  # the other steps ask the app
# What a step reads, by the step that makes it, and the stages that then have nothing missing.
TRUTH = {"ground_truth": ("ground_truth", "judge truth")}
NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    "object_sft": {},
    "ground_truth": {"object_sft": ("object_sft",)},
    "untrained": {},
    "meta_sft": TRUTH,
    "predict": {"meta_sft": ("meta_sft",)},
}


def _hands(plan: Plan, status: Status, ledger: Ledger, app: _Serving, check: Callable[[], None]) -> Hands:
    """The work that overlaps, each with its line of progress and its entry in the ledger."""
    truth = _Batches(plan, ledger, "ground_truth", len(status.missing("ground_truth", plan.truth)))
    free = _Batches(plan, ledger, "predict untrained", len(status.missing("predict", plan.untrained)))

    def ask(batch: list[Ask], wanted: Wanted) -> None:
        check()
        address = app()
        with (free if batch[0].adapter is None else truth).batch(len(batch), wanted) as on_outcome:
            answers.run_asks(plan, batch, address, versions(), on_outcome)

    def graded(part: str, wanted: Wanted) -> None:
        check()
        _judged(plan, ledger, app, part, Status(plan), wanted)

    def meta() -> None:
        check()
        _meta(plan, Status(plan), ledger, app)

    def train(arrived: Callable[[str], None]) -> None:
        _train(plan, status, ledger, app, arrived)

    check()
    return Hands(train, ask, graded, meta)


class _Batches:
    """The batches of one asked stage: one line of progress and one entry of the ledger for all of them."""

    def __init__(self, plan: Plan, ledger: Ledger, name: str, total: int) -> None:
        self._ledger, self._name, self._left = ledger, name, total
        self._meter = _meter(plan, ledger, name, total)
        self._open = ExitStack()
        self._figures: dict[str, float] = {}
        self._progress: Progress | None = None

    @contextmanager
    def batch(self, count: int, wanted: Wanted) -> Iterator[Callable[[dict[str, Any]], None]]:
        """What to call with each outcome; the stage ends with its last batch, or with one that fails."""
        if self._progress is None:
            self._figures = self._open.enter_context(self._ledger.stage(self._name))
            self._progress = self._open.enter_context(Progress(self._name, self._left))
            self._figures["busy_seconds"] = 0.0
        began, whole = time.monotonic(), False
        try:
            yield _counted(self._figures, self._progress, self._meter, wanted)
            whole = True
        finally:
            self._figures["busy_seconds"] += round(time.monotonic() - began, 2)
            self._left -= count
            if not whole or self._left <= 0:
                self._open.close()


def _meter(plan: Plan, ledger: Ledger, stage: str, shards: int) -> Meter:
    return Meter(plan.study.run_name(), stage, shards, gpus_of(stage, plan.study.resources), ledger.pulse)


def _tell_shard(stage: str, shard: str, reason: str, seconds: float, **figures: float) -> None:
    outcome = {"stage": stage, "shard": shard, "seconds": round(seconds, 3)}
    tell("shard failed" if reason else "shard committed", **outcome, **({"reason": reason} if reason else figures))


def _counted(
    figures: dict[str, float], progress: Progress, meter: Meter, wanted: Callable[[], None] = lambda: None
) -> Callable[[dict[str, Any]], None]:
    def on_outcome(outcome: dict[str, Any]) -> None:
        _tell_shard(meter.stage, outcome["key"], outcome["reason"], outcome["seconds"], **outcome["figures"])
        if not outcome["reason"]:  # else it is tried again
            progress.advance()
            meter.outcome(True, outcome["figures"])
        for name, value in outcome["figures"].items():
            figures[name] = figures.get(name, 0) + value
        wanted()

    return on_outcome
