"""vLLM's own `LLM`, without Ray and without HTTP: the peer that scores, the judges' transport, the plain study's app.

It has the settings of the served app's engine, our CPU worker included. Answers the calls of `serving.client.Client`
that judge and grid need.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bases import Base
from benchmarks.measure import cores
from metagen_ray.serving.adapters import fetch_adapter, stage_of
from metagen_ray.serving.app import ServingSpec
from metagen_ray.serving.client import Completion
from metagen_ray.serving.merge import merge
from metagen_ray.serving.replica import engine_environment
from metagen_ray.serving.weights import BASE

Prompt = list[int]


def spec_of(base: Base) -> ServingSpec:
    """A base alone, with as many threads as this process may use."""
    return ServingSpec(str(base.directory), "base", store="", threads=cores())


class Vllm:
    """One engine. Prompts are token ids; a model is named as in the app."""

    def __init__(self, spec: ServingSpec, lora: bool = False) -> None:
        self.spec = spec
        self._room = tempfile.TemporaryDirectory(prefix="metagen-adapters-")
        self._adapters: dict[str, Any] = {}
        self._held = BASE
        os.environ.update(engine_environment(spec))
        from vllm import LLM

        from metagen_ray.serving.engine import engine_settings

        settings = engine_settings(spec)
        if not lora:
            settings = {name: value for name, value in settings.items() if "lora" not in name}
        self.llm = LLM(model=spec.model_dir, **settings)

    def forget(self) -> None:
        """Empty the prefix cache, so that no round finds what an earlier one has read."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its prefix cache; a request is still running")

    def generate(self, prompts: Sequence[Prompt], model: str = "", **sampling: Any) -> list[Any]:
        """VLLM's outputs, in the order of the prompts."""
        from vllm import SamplingParams

        asked: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
        lora = self._weights(model)
        return self.llm.generate(asked, SamplingParams(**sampling, skip_clone=True), use_tqdm=False, lora_request=lora)

    async def complete(
        self,
        model: str,
        prompts: Sequence[Prompt],
        *,
        n: int = 1,
        temperature: float = 1.0,
        max_tokens: int,
        stop_ids: Sequence[int] = (),
    ) -> list[list[Completion]]:
        """As the client's: `n` answers to each prompt."""
        sampling = {"n": n, "temperature": temperature, "max_tokens": max_tokens, "stop_token_ids": list(stop_ids)}
        outputs = self.generate(prompts, model, detokenize=False, **sampling)
        return [[Completion("", tuple(a.token_ids), a.finish_reason) for a in output.outputs] for output in outputs]

    def take_served(self) -> tuple[Counter[str], int]:
        """As the client's of a server that does not tell."""
        return Counter(), 0

    async def next_token_logprobs(
        self, model: str, prompts: Sequence[Prompt], candidate_ids: Sequence[int]
    ) -> list[dict[int, float]]:
        """As the client's: log-probability of each candidate as the next token of each prompt."""
        ids = list(dict.fromkeys(candidate_ids))
        # Flat: an object for every candidate of every prompt keeps Python's garbage collector busy most of the time.
        flat = {"detokenize": False, "flat_logprobs": True}
        outputs = self.generate(prompts, model, max_tokens=1, temperature=0.0, logprob_token_ids=ids, **flat)
        found = [output.outputs[0].logprobs for output in outputs]
        return [dict(zip(each.token_ids, each.logprobs, strict=True)) for each in found]

    def close(self) -> None:
        """End the engine's process."""
        self.llm.llm_engine.engine_core.shutdown()
        self._room.cleanup()

    def _weights(self, model: str) -> Any:
        """What answers under a model's name: the base, LoRA beside it, or weights of its own; as the app has it."""
        key, spec = model.partition(":")[2], self.spec
        stages = (*spec.merged_stages, *spec.adapter_stages)
        merged = key and stage_of(spec.store, stages, key) in spec.merged_stages
        self._hold(key if merged else BASE)
        return None if merged or not key else self._adapter(key)

    def _adapter(self, key: str) -> Any:
        """An adapter as LoRA, fetched from the store at its first use."""
        if key not in self._adapters:
            from vllm.lora.request import LoRARequest

            directory = Path(self._room.name) / key
            fetch_adapter(self.spec.store, self.spec.adapter_stages, key, directory)
            self._adapters[key] = LoRARequest(key, len(self._adapters) + 1, str(directory))
        return self._adapters[key]

    def _hold(self, key: str) -> None:
        """Have the engine hold the base, or the base with an adapter merged in."""
        if key == self._held:
            return
        directory = self.spec.model_dir
        if key:
            adapter, merged = (Path(self._room.name) / f"{key}-{part}" for part in ("adapter", "merged"))
            fetch_adapter(self.spec.store, self.spec.merged_stages, key, adapter)
            merge(Path(self.spec.model_dir), adapter, merged)
            directory = str(merged)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": directory})
        self.forget()
        self._held = key
