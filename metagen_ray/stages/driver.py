"""The driver: has the steps of a study done that its plan is missing, and writes its report. Holds no state of its own.

On one small machine stages take turns: training first, then the app is up to the end. Before each step the nodes are
there that it needs, and nodes that no later step needs are let go.
"""

import getpass
import json
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

from metagen_ray import cluster, nodes
from metagen_ray.errors import InputError, PartialError, ShardsFailed
from metagen_ray.progress import about, say
from metagen_ray.stages.accounts import close_ledger
from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.curves import Curves
from metagen_ray.stages.ledger import Ledger, versions
from metagen_ray.stages.patience import ATTEMPTS
from metagen_ray.stages.plan import Plan
from metagen_ray.stages.pulse import Pulse
from metagen_ray.stages.report import write_study_report
from metagen_ray.stages.serve_app import Serving
from metagen_ray.stages.status import Status, drop_stale, repair
from metagen_ray.stages.steps import NEEDS, STEPS, TRAINS, side_by_side
from metagen_ray.study import Study

LEASE_TTL_S = 60.0  # a renewal waits for the disk; a loaded one has taken 15 s, and once 40
LEASE_BACK_S = 180.0  # as long as the store's other requests are tried; then a lease that ran out is lost
LEASE_WAIT_S = 70.0  # a killed driver's lease runs out meanwhile


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
            for line in drop_stale(plan, present):
                say(f"dropped {line}")
            kept = _compute(plan, ledger, address, partial(lease.check, LEASE_BACK_S), only)
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


def _compute(plan: Plan, ledger: Ledger, address: str | None, check: Callable[[], None], only: Sequence[str]) -> Plan:
    """Do what is missing; returns the plan without what was given up on the way."""
    status = Status(plan)
    _check_inputs(status, only)
    write_index(plan)
    if status.complete():
        return plan
    need, chosen = plan.study.resources, [name for name in STEPS if not only or name in only]
    phases = _phases(status, chosen)
    try:
        with ledger.stage("connect"):
            cluster.reach(address)
            nodes.hold(need, phases, phases if need.phases == "together" else phases[:1])
        overlaps = not only and cluster.overlaps(plan.study)
        with Serving(plan, ledger, eager=need.phases == "together" and nodes.SERVE in phases) as app:
            if overlaps:
                try:
                    side_by_side(plan, status, ledger, app, check)
                except ShardsFailed as error:
                    say(f"{error}; going on step by step")
                plan = plan.without(key for _, key in ledger.given_up)  # tried as often as any shard is
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


def _make_room(plan: Plan, steps: Sequence[str], ledger: Ledger, app: Serving) -> None:
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


def write_index(plan: Plan) -> None:
    """Keys of every shard by stage, for a person and for other programs."""
    index = {
        "object_sft": {a.domain: a.key for a in plan.adapters},
        "meta_sft": plan.meta,
        "ground_truth": [a.key for a in plan.truth],
        "predict": [a.key for a in (*plan.untrained, *plan.predictions)],
        "judge": [s.key for shards in plan.judged.values() for s in shards],
    }
    plan.context.store.write_doc(f"studies/{plan.study.run_name()}/index.json", json.dumps(index, indent=1).encode())
