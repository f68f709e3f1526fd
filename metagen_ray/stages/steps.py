"""The steps of a study: each does what it finds missing, and writes it down. Owns their order, and what each reads.

A step takes the plan and returns it without what was given up. Where training and serving have resources of their own,
the steps before the meta-trained model's predictions run side by side (stages/arrivals.py has the order).
"""

from collections.abc import Callable, Mapping

from metagen_ray import nodes
from metagen_ray.errors import ShardsFailed
from metagen_ray.progress import Progress
from metagen_ray.stages import answers, judge, meta_sft, object_sft
from metagen_ray.stages.arrivals import Hands, Wanted, run_overlapped
from metagen_ray.stages.ledger import Batches, Ledger, counted, meter_of, tell_shard, versions
from metagen_ray.stages.meter import Meter
from metagen_ray.stages.patience import patiently
from metagen_ray.stages.plan import AdapterShard, Ask, JudgeShard, Plan
from metagen_ray.stages.serve_app import Serving
from metagen_ray.stages.status import Status


def side_by_side(plan: Plan, status: Status, ledger: Ledger, app: Serving, check: Callable[[], None]) -> None:
    """All that comes before the meta-trained model's predictions; the ledger says that its stages overlapped."""
    before = set(ledger.stages)
    run_overlapped(plan, status, _hands(plan, status, ledger, app, check))
    for name in set(ledger.stages) - before:
        ledger.stages[name]["overlapped"] = 1


def _hands(plan: Plan, status: Status, ledger: Ledger, app: Serving, check: Callable[[], None]) -> Hands:
    """The work that overlaps, each with its line of progress and its entry in the ledger."""
    truth = Batches(plan, ledger, "ground_truth", len(status.missing("ground_truth", plan.truth)))
    free = Batches(plan, ledger, "predict untrained", len(status.missing("predict", plan.untrained)))

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
        nodes.hold(plan.study.resources, [nodes.TRAIN, nodes.SERVE], ())
        _meta(plan, Status(plan), ledger, app)

    def train(arrived: Callable[[str], None]) -> None:
        _train(plan, status, ledger, app, arrived)
        if plan.meta not in status.present["meta_sft"]:  # idle until then, its nodes must not go
            nodes.hold(plan.study.resources, [nodes.SERVE, nodes.TRAIN], ())

    check()
    return Hands(train, ask, graded, meta)


def _train(
    plan: Plan, status: Status, ledger: Ledger, app: Serving, arrived: Callable[[str], None] = lambda key: None
) -> Plan:
    missing = status.missing("object_sft", (*plan.adapters, *plan.second_adapters))
    if not missing:
        return plan

    meter = meter_of(plan, ledger, "object_sft", len(missing))
    names = {shard.key: f"{shard.domain}-seed{shard.seed}" for shard in missing}

    def on_outcome(outcome: object_sft.Outcome) -> None:
        tell_shard("object_sft", outcome.key, outcome.reason if not outcome.ok else "", outcome.seconds)
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


def _truth(plan: Plan, status: Status, ledger: Ledger, app: Serving) -> Plan:
    plan = _asked(plan, ledger, app, "ground_truth", status.missing("ground_truth", plan.truth), len(plan.truth))
    return _judged(plan, ledger, app, "truth", status)


def _untrained(plan: Plan, status: Status, ledger: Ledger, app: Serving) -> Plan:
    missing = status.missing("predict", plan.untrained)
    plan = _asked(plan, ledger, app, "predict untrained", missing, len(plan.untrained))
    return _judged(plan, ledger, app, "untrained", status)


def _meta(plan: Plan, status: Status, ledger: Ledger, app: Serving) -> Plan:
    if plan.meta not in status.present["meta_sft"]:
        meter, live = meter_of(plan, ledger, "meta_sft", 1), ledger.curves.live("meta_sft", "meta")
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


def _predict(plan: Plan, status: Status, ledger: Ledger, app: Serving) -> Plan:
    missing = status.missing("predict", plan.predictions)
    plan = _asked(plan, ledger, app, "predict meta", missing, len(plan.predictions))
    return _judged(plan, ledger, app, "meta", status)


def _asked(plan: Plan, ledger: Ledger, app: Serving, name: str, missing: list[Ask], whole: int) -> Plan:
    if not missing:
        return plan
    address = app()
    meter = meter_of(plan, ledger, name, len(missing))
    with ledger.stage(name) as figures, Progress(name, len(missing)) as progress:
        on_outcome = counted(figures, progress, meter)

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
    plan: Plan, ledger: Ledger, app: Serving, part: str, status: Status, wanted: Callable[[], None] = lambda: None
) -> Plan:
    missing = status.missing("judge", plan.judged[part])
    if not missing:
        return plan
    address = app()
    name = f"judge {part}"
    meter = meter_of(plan, ledger, name, len(missing))
    with ledger.stage(name) as figures, Progress(name, len(missing)) as progress:
        on_outcome = counted(figures, progress, meter, wanted)

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
