"""Ray Serve LLM's server, told where our adapters lie and spared what a closed system does not need.

Owns engine settings. Imports vLLM: only a replica imports this module.
"""

import asyncio
import json
import multiprocessing
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from fastapi import HTTPException
from ray.llm._internal.common.callbacks.base import CallbackBase, CallbackConfig
from ray.llm._internal.serve.core.server.llm_server import LLMServer
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionLogProbs, CompletionRequest, CompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError
from vllm.logprobs import FlatLogprobs
from vllm.sampling_params import SamplingParams
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.engine import utils as engine_processes

from metagen_ray.errors import InputError
from metagen_ray.scratch import Scratch
from metagen_ray.serving import siblings
from metagen_ray.serving.adapters import AdapterLoader, fetch_adapter, key_of, stage_of
from metagen_ray.serving.app import ServingSpec
from metagen_ray.serving.merge import merge
from metagen_ray.serving.weights import BASE, Resident

CPU_PROMPTS_IN_BATCH = 512  # a step of a small model is mostly its fixed cost: 1,150 to 1,330 answers/s from 256 on
LEAST_LOGPROB = -9999.0  # in JSON, for minus infinity; as vLLM has it
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes


class LocalFiles(CallbackBase):
    """Weights lie in a directory already: no node is prepared, which would import vLLM in one more process."""

    async def on_before_node_init(self) -> None:
        """Skip the download of model files."""
        self.ctx.run_init_node = False


class ScoringOrCompletion(CompletionRequest):
    """A completion request; one that asks for token ids has no use for their text, nor for that of 100 candidates."""

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> SamplingParams:
        """As vLLM has it, without decoding what is not read."""
        params = super().to_sampling_params(*args, **kwargs)
        by_id = self.logprob_token_ids and self.return_tokens_as_token_ids
        params.detokenize = not (by_id or self.return_token_ids)
        # An object for each candidate is work for Python's garbage collector. An echoed prompt's first token has none.
        params.flat_logprobs = bool(by_id) and not self.echo
        params.skip_clone = True  # vLLM would copy 100 ids deeply for every prompt of a request, 0.2 ms each
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

    async def start(self) -> None:
        """As the base class, and from then on count what the prefix cache spares."""
        await super().start()
        completions: Any = self._oai_serving_completion
        completions._create_completion_logprobs = partial(_logprobs, completions._create_completion_logprobs)
        self._read = self._cached = 0
        client: Any = self._engine_client
        generate = client.generate

        async def counted(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            last = None
            async for last in generate(*args, **kwargs):
                yield last
            if last is not None:
                self._read += len(last.prompt_token_ids or ())
                self._cached += last.num_cached_tokens or 0

        client.generate = counted

    def take_cached(self) -> tuple[int, int]:
        """Prompt tokens looked up in the prefix cache and those found there, since this was last called."""
        taken, self._read, self._cached = (self._read, self._cached), 0, 0
        return taken

    async def answer(self, method: str, model: str, body: bytes) -> tuple[int, bytes]:
        """Status and JSON of a completion or chat request, answered by the model that the engine knows as `model`."""
        completes = method == "completions"
        serving: Any = self._oai_serving_completion if completes else self._oai_serving_chat
        try:
            request = (ScoringOrCompletion if completes else ChatCompletionRequest).model_validate_json(body)
            asked, request.model = request.model, model
            create = serving.create_completion if completes else serving.create_chat_completion
            response = await create(request)
        except (ValueError, VLLMClientError) as error:
            response = serving.create_error_response(error)
        if isinstance(response, ErrorResponse):
            return response.error.code, response.model_dump_json().encode()
        response.model = asked
        return 200, _compact(response)

    def is_dead(self) -> bool:
        """The engine's process has ended; nothing that is asked of it will be answered."""
        return cast(Any, self._engine_client).errored

    async def load_weights(self, directory: str) -> None:
        """Put the weights of a model directory in place of those in use; nothing may be running."""
        engine: Any = self._engine_client
        await engine.collective_rpc("reload_weights", kwargs={"weights_path": directory})
        if not await engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM did not empty its prefix cache; it holds keys and values of the former weights")


def _logprobs(
    usual: Callable[..., CompletionLogProbs], token_ids: Sequence[int], top_logprobs: Any, **asked: Any
) -> CompletionLogProbs:
    """What `usual` makes of log-probabilities; of flat ones, which are asked for by id, without an object for each.

    For a judge's 101 candidates 86 us a prompt instead of 188.
    """
    if not isinstance(top_logprobs, FlatLogprobs):
        return usual(token_ids=token_ids, top_logprobs=top_logprobs, **asked)
    names = [f"token_id:{i}" for i in top_logprobs.token_ids]
    values = [max(value, LEAST_LOGPROB) for value in top_logprobs.logprobs]
    spans = [slice(*span) for span in zip(top_logprobs.start_indices, top_logprobs.end_indices, strict=True)]
    said = [f"token_id:{i}" for i in token_ids]
    return CompletionLogProbs.model_construct(
        tokens=said,
        token_logprobs=[values[span.start] for span in spans],  # the token that was said stands first
        top_logprobs=[dict(zip(names[span], values[span], strict=True)) for span in spans],
        text_offset=[0, *accumulate(map(len, said[:-1]))],
    )


def _compact(response: CompletionResponse | ChatCompletionResponse) -> bytes:
    """The response without the prompts, which the asker knows and which would stand in it n times."""
    if isinstance(response, CompletionResponse):
        for choice in response.choices:
            choice.prompt_token_ids = None
    return response.model_dump_json(exclude_none=True).encode()


class AdapterServer(LLMServer):
    """The LLM server, with adapters by content key: as LoRA, one load at a time of each, or merged into the base."""

    _default_engine_cls = Engine

    def serve(self, spec: ServingSpec) -> None:
        """What is served; called once, before the first request."""
        self._spec = spec
        self._resident = Resident(self._hold)
        self._stages: dict[str, str] = {}

    def _init_multiplex_loader(self, model_downloader_cls: Any = None) -> None:
        super()._init_multiplex_loader(model_downloader_cls or AdapterLoader)
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def _start_engine(self) -> None:
        # Without the telemetry of the base class, which starts an actor of its own.
        await cast(Engine, self.engine).start()

    async def ask(self, method: str, model: str, body: bytes) -> tuple[int, bytes]:
        """Load the adapter if the model names one, then answer."""
        base, engine = self._spec.model_name, cast(Engine, self.engine)
        try:
            key = "" if model == base else key_of(model)
            merged = key if key and await self._stage(key) in self._spec.merged_stages else BASE
            async with self._resident.holding(merged):
                if key and not merged:
                    await self._load_adapter(model)
                return await engine.answer(method, base if merged else model, body)
        except HTTPException as error:
            return error.status_code, _error_json(error.status_code, str(error.detail))

    def take_cached(self) -> tuple[int, int]:
        """Prompt tokens looked up in the prefix cache and those found there, since this was last called."""
        return cast(Engine, self.engine).take_cached()

    async def _stage(self, key: str) -> str:
        if key not in self._stages:
            stages = (*self._spec.merged_stages, *self._spec.adapter_stages)
            self._stages[key] = await asyncio.to_thread(stage_of, self._spec.store, stages, key)
        return self._stages[key]

    async def _hold(self, key: str) -> None:
        """Load the base, or the base with an adapter merged in; the merged files are dropped once they are loaded."""
        spec, engine = self._spec, cast(Engine, self.engine)
        if key == BASE:
            return await engine.load_weights(spec.model_dir)
        with Scratch("merged") as room:
            adapter, merged = Path(room) / "adapter", Path(room) / "merged"
            await asyncio.to_thread(fetch_adapter, spec.store, spec.merged_stages, key, adapter)
            try:
                await asyncio.to_thread(merge, Path(spec.model_dir), adapter, merged)
            except InputError as error:
                raise HTTPException(400, f"{spec.model_name}:{key}: {error}") from error
            await engine.load_weights(str(merged))

    async def _load_adapter(self, model: str) -> None:
        # Two first requests for one adapter would both find it missing, and vLLM refuses the second load.
        async with self._locks[model]:
            try:
                files = await cast(Any, self._load_model)(model)
                await cast(Engine, self.engine).resolve_lora(files)
            except ValueError as error:
                # The last words of a dying engine come as a refusal of the adapter; Serve is about to start another.
                status = 503 if cast(Engine, self.engine).is_dead() else 400
                raise HTTPException(status, f"{model}: {error}") from error


async def start_server(spec: ServingSpec) -> AdapterServer:
    """Start the engine of a replica; returns when it can answer."""
    server = cast(AdapterServer, AdapterServer.sync_init(llm_config(spec)))
    server.serve(spec)
    await server.start()
    freeze_gc_heap()  # what is there stays: the collector need not walk through vLLM at every response
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
        experimental_configs={"adapters": (spec.store, spec.adapter_stages)},
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
    if spec.gpus_per_replica > 1:  # all on the replica's node, which its one bundle sees to
        settings |= {"tensor_parallel_size": int(spec.gpus_per_replica), "distributed_executor_backend": "mp"}
    if not spec.gpus_per_replica:
        settings |= {
            "dtype": "float32",
            "max_num_seqs": max(CPU_PROMPTS_IN_BATCH, spec.prompts_in_batch),
            "enforce_eager": True,
            "kv_cache_memory_bytes": int(spec.kv_cache_gib * 2**30),
            "worker_cls": "metagen_ray.serving.cpu_worker.Worker",
            "block_size": 32,  # the smallest that vLLM's CPU attention takes; whole blocks are what prefixes share
            **siblings.SETTINGS,
        }
    return settings


def _error_json(status: int, message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": status}}).encode()
