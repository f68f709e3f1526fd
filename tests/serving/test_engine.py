"""What the engine's answers are made of, against vLLM's own way of making them."""

import sys
from itertools import repeat

import pytest

from metagen_ray.serving.replica import import_engine

pytestmark = pytest.mark.slow  # imports vLLM


def test_flat_logprobs_are_told_as_vllm_tells_them():
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.logprobs import FlatLogprobs

    from metagen_ray.serving.engine import _logprobs

    found, candidates = FlatLogprobs(), list(range(300, 401))
    values = [-float("inf"), *(-n / 7 for n in range(1, 101))]
    for said, value in ((300, values[0]), (7, -0.25)):
        found.append_fast([said, *candidates], [value, *values], iter(repeat(1, 102)), repeat(None))
    vllm = object.__new__(OpenAIServingCompletion)
    asked = {"tokenizer": None, "num_output_top_logprobs": 101, "logprob_token_ids": candidates}
    usual = vllm._create_completion_logprobs
    expected = usual([300, 7], found, return_as_token_id=True, **asked)
    told = _logprobs(usual, token_ids=[300, 7], top_logprobs=found, return_as_token_id=True, **asked)
    assert told == expected
    assert told.model_dump_json() == expected.model_dump_json()
    assert told.top_logprobs is not None and told.top_logprobs[0] is not None
    assert (len(told.top_logprobs[0]), told.top_logprobs[0]["token_id:300"]) == (101, -9999.0)


def test_flat_logprobs_are_those_of_answers_alone_not_of_an_echoed_prompt():
    from metagen_ray.serving.engine import ScoringOrCompletion

    asked = {"model": "m", "prompt": [1, 2], "max_tokens": 1, "logprobs": 2, "logprob_token_ids": [3, 4]}
    for echo in (False, True):
        request = ScoringOrCompletion(**asked, echo=echo, return_tokens_as_token_ids=True)
        assert request.to_sampling_params(1, {}).flat_logprobs is not echo


def test_replicas_that_import_ray_llm_at_the_same_moment_all_start(monkeypatch: pytest.MonkeyPatch):
    from ray.llm._internal.serve.utils.registry import ComponentRegistry

    looks: list[str] = []

    def contains(_: ComponentRegistry, name: str) -> bool:
        looks.append(name)
        return len(looks) != 1  # another replica has written it before the second look

    monkeypatch.setattr(ComponentRegistry, "contains", contains)
    for module in ("metagen_ray.serving.engine", "metagen_ray.serving.adapters"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for module in [m for m in sys.modules if m.startswith("ray.llm")]:
        if module != ComponentRegistry.__module__:
            monkeypatch.delitem(sys.modules, module)
    assert import_engine().start_server
    assert looks[0] == looks[1] == looks[2]
