"""vLLM's own `LLM`, without Ray and without HTTP: the peer that scores, and the transport of the judges.

It has the settings of the served app's engine, our CPU worker included, but no LoRA, and as many threads as the process
may use. Answers the call of `serving.client.Client` that a judge needs.
"""

import os
from collections.abc import Sequence
from typing import Any

from benchmarks.bases import Base
from benchmarks.measure import cores
from metagen_ray.serving.app import ServingSpec
from metagen_ray.serving.replica import engine_environment

Prompt = list[int]


class Vllm:
    """One engine with a base. Prompts are token ids."""

    def __init__(self, base: Base, **settings: Any) -> None:
        spec = ServingSpec(str(base.directory), "base", store="", threads=cores())
        os.environ.update(engine_environment(spec))
        from vllm import LLM

        from metagen_ray.serving.engine import engine_settings

        found = {name: value for name, value in engine_settings(spec).items() if "lora" not in name}
        self.llm = LLM(model=spec.model_dir, **found, **settings)

    def forget(self) -> None:
        """Empty the prefix cache, so that no round finds what an earlier one has read."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its prefix cache; a request is still running")

    def generate(self, prompts: Sequence[Prompt], **sampling: Any) -> list[Any]:
        """VLLM's outputs, in the order of the prompts."""
        from vllm import SamplingParams

        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return self.llm.generate(asked, SamplingParams(**sampling), use_tqdm=False)  # type: ignore[arg-type]

    async def next_token_logprobs(
        self, model: str, prompts: Sequence[Prompt], candidate_ids: Sequence[int]
    ) -> list[dict[int, float]]:
        """As the client's: log-probability of each candidate as the next token of each prompt."""
        ids = list(dict.fromkeys(candidate_ids))
        found = self.generate(prompts, max_tokens=1, temperature=0.0, logprob_token_ids=ids, detokenize=False)
        return [{i: output.outputs[0].logprobs[0][i].logprob for i in ids} for output in found]

    def close(self) -> None:
        """End the engine's process."""
        self.llm.llm_engine.engine_core.shutdown()
