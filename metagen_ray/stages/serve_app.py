"""The app of a study: what is served follows from the plan. Owns the translation of a study into a serving spec."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from metagen_ray import cluster
from metagen_ray.errors import Terminated
from metagen_ray.serving.app import ServingSpec, deploy, undeploy, undeploy_app
from metagen_ray.stages.answers import AppAddress
from metagen_ray.stages.context import ENGINE_RANKS
from metagen_ray.stages.ledger import Ledger
from metagen_ray.stages.plan import Plan


def up(plan: Plan) -> AppAddress:
    """Deploy the app and return its address once it answers."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    app = deploy(spec(plan, cluster.app_host(plan.study.resources)))
    return AppAddress(app.url, app.token_file, app.model_name)


def down(hurry: bool = False) -> None:
    """End the app, and Serve with it; in a hurry the app alone, without waiting until it has ended."""
    undeploy_app(wait=False) if hurry else undeploy()


class Serving:
    """The app, waited for by whoever asks it; `eager`: up in the background at once, not when first asked."""

    def __init__(self, plan: Plan, ledger: Ledger, eager: bool) -> None:
        self._plan, self._ledger = plan, ledger
        self._threads = ThreadPoolExecutor(1, "deploy")
        self._app = self._start() if eager else None

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the app; in a hurry without waiting for it, or for its start."""
        hurry = kind is Terminated
        self._threads.shutdown(wait=not hurry, cancel_futures=hurry)
        down(hurry)

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
            down()
            self._app = None

    def _start(self) -> "Future[AppAddress]":
        return self._threads.submit(up, self._plan)


def spec(plan: Plan, host: str = cluster.LOOPBACK) -> ServingSpec:
    """Engine settings that hold every adapter and every prompt of the plan."""
    study, resources, context = plan.study, plan.study.resources, plan.context
    return ServingSpec(
        model_dir=str(context.base.directory),
        model_name=context.base.name,
        store=context.store.root,
        max_lora_rank=_allowed_rank(study.object_sft.rank),
        max_model_len=context.base.context_tokens,
        replicas=resources.replicas,
        max_replicas=resources.max_replicas,
        cpus_per_replica=resources.cpus_per_replica,
        gpus_per_replica=resources.gpus_per_replica,
        kv_cache_gib=resources.kv_cache_gib,
        threads=max(1, round(resources.cpus_per_replica)),
        host=host,
        port=resources.port,
        node_labels=tuple(resources.serve_nodes.items()),
    )


def _allowed_rank(rank: int) -> int:
    """The engine takes certain ranks only: the next one up."""
    return next(allowed for allowed in ENGINE_RANKS if allowed >= rank)
