"""One engine replica as Serve runs it. Owns the engine's processes and their environment; knows no request.

vLLM is imported when a replica starts, not before: in the replica and, at the same time, in the process that will
become its engine. One after the other these imports are most of the time until the first answer.
"""

import os
from importlib import import_module
from multiprocessing import forkserver
from types import ModuleType
from typing import TYPE_CHECKING

import ray
from ray import serve

from metagen_ray import metrics
from metagen_ray.serving.client import CACHED, SERVED_BY
from metagen_ray.serving.orphan import ENDS_WITH_PARENT

if TYPE_CHECKING:
    from metagen_ray.serving.app import ServingSpec

ENGINE_IMPORTS = [
    "metagen_ray.serving.orphan",
    "metagen_ray.serving.cpu_worker",
    "vllm.v1.engine.core",
    "vllm.model_executor.models.qwen3",
]

IMPORTS_AT_ONCE = 5  # ray.llm keeps four names


class EngineReplica:
    """Holds one LLM server and hands requests through as bytes."""

    async def __init__(self, spec: "ServingSpec") -> None:
        os.environ.update(engine_environment(spec))
        if not spec.gpus_per_replica:
            forkserver.set_forkserver_preload(ENGINE_IMPORTS)
            os.environ[ENDS_WITH_PARENT] = "1"
            forkserver.ensure_running()
            del os.environ[ENDS_WITH_PARENT]
        start_server = import_engine().start_server

        self._node = ray.util.get_node_ip_address()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._server = await start_server(spec)

    async def ask(self, method: str, model: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """HTTP status and JSON body of one OpenAI request, and headers: who answered, what was spared."""
        status, reply = await self._server.ask(method, model, body)
        read, cached = self._server.take_cached()
        metrics.count("metagen_prefix_cache_query_tokens", read, replica=self._name)
        metrics.count("metagen_prefix_cache_hit_tokens", cached, replica=self._name)
        return status, reply, {SERVED_BY: self._node, CACHED: str(cached)}

    async def check_health(self) -> None:
        """Raise where the engine is dead; Serve then starts another replica."""
        await self._server.check_health()


def import_engine() -> ModuleType:
    """The module that starts an engine.

    On import ray.llm writes names into a table of the whole cluster and raises where another replica, importing at the
    same moment, writes one between its two looks for it. The name stands there from then on.
    """
    for _ in range(IMPORTS_AT_ONCE - 1):
        try:
            return import_module("metagen_ray.serving.engine")
        except ValueError:
            continue
    return import_module("metagen_ray.serving.engine")


def engine_environment(spec: "ServingSpec") -> dict[str, str]:
    """Environment of the engine's processes: nothing asks the network, nothing is compiled, threads as given."""
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "",
    }
    quiet = {"VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false"}
    on_cpu = {"LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": str(spec.threads), "TORCH_COMPILE_DISABLE": "1"}
    return offline | quiet | ({} if spec.gpus_per_replica else on_cpu)
