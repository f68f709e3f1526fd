"""Object-SFT: one adapter per domain, trained in Ray Train lanes. Owns their jobs; trains nothing."""

from collections.abc import Callable, Mapping, Sequence

from metagen_ray.errors import ShardsFailed
from metagen_ray.stages.object_rows import domain_rows
from metagen_ray.stages.plan import AdapterShard, Plan
from metagen_ray.training.lanes import run_lanes
from metagen_ray.training.rows import Tree, plain_row
from metagen_ray.training.worker import AdapterJob, Outcome


def run(
    plan: Plan, shards: Sequence[AdapterShard], versions: Mapping[str, str], on_outcome: Callable[[Outcome], None]
) -> None:
    """Train and commit every adapter; ShardsFailed if some failed, after all others are done.

    `on_outcome` is called for each as it ends, by when a good one stands in the store.
    """
    context, study = plan.context, plan.study
    jobs = [
        AdapterJob(s.key, domain_trees(plan, s.domain), study.object_sft, s.seed, _record(plan, s, versions))
        for s in shards
    ]
    outcomes = run_lanes(
        context.base.directory,
        jobs,
        study.resources,
        context.store.root,
        "object_sft",
        f"{study.run_name()}-object",
        on_outcome,
    )
    failed = {s.key: f"{s.domain}: {o.reason}" for s, o in zip(shards, outcomes, strict=True) if not o.ok}
    if failed:
        raise ShardsFailed("object_sft, adapters", failed, len(shards))


def domain_trees(plan: Plan, domain: str) -> list[Tree]:
    """The training set of a domain as rows to train on."""
    return [plain_row(*row) for row in domain_rows(plan.context, plan.context.domains[domain])]


def _record(plan: Plan, shard: AdapterShard, versions: Mapping[str, str]) -> dict:
    study = plan.study
    return {
        "domain": shard.domain,
        "seed": shard.seed,
        "recipe": study.object_sft.model_dump(mode="json"),
        "base": plan.context.base.digest,
        "fingerprint": study.fingerprint(),
        "versions": dict(versions),
    }
