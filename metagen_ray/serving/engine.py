"""Ray Serve LLM's server, told where our adapters lie and spared what a closed system does not need.

Owns engine settings. Imports vLLM: only a replica imports this module.
"""

import asyncio
import json
import multiprocessing
import secrets
from collections import defaultdict
from typing import Any, cast

from fastapi import HTTPException
from ray.llm._internal.common.callbacks.base import CallbackBase, CallbackConfig
from ray.llm._internal.serve.core.server.llm_server import LLMServer
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import utils as engine_processes

from metagen_ray.serving.adapters import AdapterLoader
from metagen_ray.serving.app import ServingSpec

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes


class LocalFiles(CallbackBase):
    """Weights lie in a directory already: no node is prepared, which would import vLLM in one more process."""

    async def on_before_node_init(self) -> None:
        """Skip the download of model files."""
        self.ctx.run_init_node = False


class ScoringOrCompletion(CompletionRequest):
    """A completion request; one that asks for log-probabilities by id has no use for their text."""

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> SamplingParams:
        """As vLLM has it, without decoding 100 candidates a prompt."""
        params = super().to_sampling_params(*args, **kwargs)
        params.detokenize = not (self.logprob_token_ids and self.return_tokens_as_token_ids)
        return params


class Engine(VLLMEngine):
    """The engine of Ray Serve LLM, answering JSON and one process smaller on CPU."""

    def _prepare_engine_config(self, callback_ctx: Any) -> Any:
        engine_args, frontend_args, config = super()._prepare_engine_config(callback_ctx)
        # The engine's process runs its one worker itself: a process, 8 s of imports and 800 MB fewer. vLLM's own
        # choice on CPU is a second process, so that it can bind threads there; ours are set by OMP_NUM_THREADS.
        if config.parallel_config.world_size == 1 and config.device_config.device_type == "cpu":
            config.parallel_config.distributed_executor_backend = "uni"
            engine_processes.get_mp_context = lambda: multiprocessing.get_context("forkserver")
        return engine_args, frontend_args, config

    async def answer(self, method: str, body: bytes) -> tuple[int, bytes]:
        """Status and JSON of a completion or chat request."""
        serving: Any = self._oai_serving_completion if method == "completions" else self._oai_serving_chat
        try:
            if method == "completions":
                response = await serving.create_completion(ScoringOrCompletion.model_validate_json(body))
            else:
                response = await serving.create_chat_completion(ChatCompletionRequest.model_validate_json(body))
        except (ValueError, VLLMClientError) as error:
            response = serving.create_error_response(error)
        if isinstance(response, ErrorResponse):
            return response.error.code, response.model_dump_json().encode()
        return 200, _compact(response)


def _compact(response: CompletionResponse | ChatCompletionResponse) -> bytes:
    """The response without the prompts, which the asker knows and which would stand in it n times."""
    if isinstance(response, CompletionResponse):
        for choice in response.choices:
            choice.prompt_token_ids = None
    return response.model_dump_json(exclude_none=True).encode()


class AdapterServer(LLMServer):
    """The LLM server, with adapters by content key and one load at a time of each."""

    _default_engine_cls = Engine

    def _init_multiplex_loader(self, model_downloader_cls: Any = None) -> None:
        super()._init_multiplex_loader(model_downloader_cls or AdapterLoader)
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def _start_engine(self) -> None:
        # Without the telemetry of the base class, which starts an actor of its own.
        await cast(Engine, self.engine).start()

    async def ask(self, method: str, model: str, body: bytes) -> tuple[int, bytes]:
        """Load the adapter if the model names one, then answer."""
        if model != self._llm_config.model_id:
            try:
                await self._load_adapter(model)
            except HTTPException as error:
                return error.status_code, _error_json(error.status_code, str(error.detail))
        return await cast(Engine, self.engine).answer(method, body)

    async def _load_adapter(self, model: str) -> None:
        # Two first requests for one adapter would both find it missing, and vLLM refuses the second load.
        async with self._locks[model]:
            try:
                files = await cast(Any, self._load_model)(model)
                await cast(Engine, self.engine).resolve_lora(files)
            except ValueError as error:
                raise HTTPException(400, f"{model}: {error}") from error


async def start_server(spec: ServingSpec) -> AdapterServer:
    """Start the engine of a replica; returns when it can answer."""
    server = cast(AdapterServer, AdapterServer.sync_init(llm_config(spec)))
    await server.start()
    return server


def llm_config(spec: ServingSpec) -> LLMConfig:
    """Ray Serve LLM's configuration of a spec."""
    return LLMConfig(
        model_loading_config={"model_id": spec.model_name, "model_source": spec.model_dir},
        accelerator_type=None,
        placement_group_config={"bundles": [spec.bundle]},
        lora_config={"dynamic_lora_loading_path": None, "max_num_adapters_per_replica": spec.adapters_in_memory},
        engine_kwargs=engine_settings(spec),
        log_engine_metrics=False,
        callback_config=CallbackConfig(callback_class=LocalFiles),
        experimental_configs={"adapters": {"store": spec.store, "stages": spec.adapter_stages}},
    )


def engine_settings(spec: ServingSpec) -> dict[str, Any]:
    """Settings of vLLM for a spec."""
    settings: dict[str, Any] = {
        "max_model_len": spec.max_model_len,
        "max_num_seqs": spec.prompts_in_batch,
        "max_num_batched_tokens": spec.tokens_in_batch,
        "enable_prefix_caching": True,
        "enable_lora": True,
        "max_loras": spec.adapters_in_batch,
        "max_cpu_loras": spec.adapters_in_memory,
        "max_lora_rank": next(rank for rank in LORA_RANKS if rank >= spec.max_lora_rank),
        # A generation_config.json would bring its own top_k and penalties into every answer.
        "generation_config": "vllm",
        # Replicas and restarts that share a seed would share their random numbers, and cells their noise.
        "seed": secrets.randbits(31),
        "disable_log_stats": True,
        "trust_remote_code": False,
    }
    if not spec.gpus_per_replica:
        settings |= {
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_memory_bytes": int(spec.kv_cache_gib * 2**30),
            "worker_cls": "metagen_ray.serving.cpu_worker.Worker",
            "block_size": 32,  # the smallest that vLLM's CPU attention takes; whole blocks are what prefixes share
        }
    return settings


def _error_json(status: int, message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": status}}).encode()
