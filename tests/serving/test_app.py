import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import psutil
import pytest
from ray import serve

from metagen_ray.errors import InputError, MachineError
from metagen_ray.prompts import Renderer, Scorer
from metagen_ray.serving.app import APP, deploy
from metagen_ray.serving.auth import read_token
from metagen_ray.serving.client import Client, Limits
from metagen_ray.serving.judge import Judge, Options
from metagen_ray.serving.numbers import NUMBERS
from tests.serving.conftest import MERGED, UNASKED, UNMERGEABLE, Served, random_adapter
from tests.tiny import make_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.machine, pytest.mark.timeout(900)]
T = TypeVar("T")
USUAL = Limits()
PATIENT = Limits(attempts=12, backoff_s=2.0, read_s=240.0)
PROMPT = [1, 40, 41, 42, 3, 2]


def ask(served: Served, call: Callable[[Client], Awaitable[T]], limits: Limits = USUAL) -> T:
    async def run() -> T:
        async with Client(served.app.url, read_token(served.app.token_file), limits) as client:
            return await call(client)

    return asyncio.run(run())


def replicas() -> list[psutil.Process]:
    ours = psutil.Process().children(recursive=True)
    return [p for p in ours if "ServeReplica:metagen:engine" in p.name()]


def wait_until(seen: Callable[[], Any], within_s: float = 120) -> Any:
    """What is seen, as soon as it is something."""
    end = time.monotonic() + within_s
    while not (found := seen()):
        assert time.monotonic() < end, "not seen"
        time.sleep(0.1)
    return found


def starting_replicas(known: Sequence[psutil.Process], count: int = 1) -> list[psutil.Process]:
    def new() -> list[psutil.Process]:
        found = [p for p in replicas() if p not in known]
        return found if len(found) >= count else []

    return wait_until(new)


def kill_starting_replica(known: Sequence[psutil.Process]) -> None:
    starting_replicas(known)[0].kill()


def kill_replica_while_another_starts(known: Sequence[psutil.Process]) -> None:
    up, late = starting_replicas(known, 2)
    late.suspend()
    try:
        wait_until(lambda: serve.status().applications[APP].deployments["engine"].replica_states.get("RUNNING"))
        up.kill()
        wait_until(lambda: serve.status().applications[APP].status == "DEPLOY_FAILED")
    finally:
        late.resume()


def next_logprobs(model: Any, prompts: Sequence[list[int]]) -> np.ndarray:
    """Reference, one prompt at a time in transformers. P: prompt, V: vocabulary."""
    import torch

    with torch.no_grad():
        rows = [model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in prompts]
    return torch.stack(rows).numpy()


def base_model(served: Served) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(served.model_dir).eval()


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/anything"])
def test_app_a_request_without_the_token_gets_401(served: Served, header: dict[str, str], path: str):
    reply = httpx.post(served.app.url + path, headers=header, json={"model": "tiny", "prompt": [PROMPT]})
    assert reply.status_code == 401


def test_app_token_stands_in_no_command_line_environment_or_log(served: Served):
    token = Path(served.app.token_file).read_text()
    mine = psutil.Process().children(recursive=True)
    seen = [json.dumps([p.cmdline(), p.environ()]) for p in mine if p.is_running()]
    assert seen and not any(token in text for text in seen)
    assert served.app.url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("model", "prompt", "match"),
    [
        ("other", PROMPT, "no model 'other'"),
        ("tiny:nokey", PROMPT, "64 hex"),
        ("tiny:" + "0" * 64, PROMPT, "train it first"),
        ("tiny", [5] * 400, "256"),
        ("tiny", [10**6], "vocab|token"),
    ],
)
def test_app_what_it_cannot_answer_is_one_clear_error(served: Served, model: str, prompt: list[int], match: str):
    with pytest.raises(InputError, match=match):
        ask(served, lambda c: c.complete(model, [prompt], max_tokens=4))


def test_app_an_adapter_above_the_engine_rank_is_refused_by_rank(served: Served):
    with pytest.raises(InputError, match="rank 16"):
        ask(served, lambda c: c.complete(served.adapter(3), [PROMPT], max_tokens=2))


def test_app_an_adapter_that_cannot_be_merged_is_refused_at_once_and_the_base_goes_on(served: Served):
    with pytest.raises(InputError, match="use_dora cannot be merged"):
        ask(served, lambda c: c.complete(served.adapter(UNMERGEABLE), [PROMPT], max_tokens=2))
    assert ask(served, lambda c: c.complete("tiny", [PROMPT], max_tokens=2))


def test_app_a_wrong_token_is_named_by_the_client(served: Served):
    async def run() -> None:
        async with Client(served.app.url, "wrong") as client:
            await client.complete("tiny", [PROMPT], max_tokens=1)

    with pytest.raises(MachineError, match="bearer token"):
        asyncio.run(run())


def test_app_logprobs_of_base_and_adapters_equal_transformers(served: Served):
    prompts = [[1, *range(20 + i, 50 + 2 * i), 3, 2] for i in range(5)]
    ids = list(range(200))

    async def both(client: Client) -> list[list[dict[int, float]]]:
        # At the same time, so that the base and three adapters meet in one batch with two slots.
        models = ["tiny", *(served.adapter(n) for n in range(3))]
        return await asyncio.gather(*(client.next_token_logprobs(model, prompts, ids) for model in models))

    found = ask(served, both)
    for model, rows in zip(
        [base_model(served), *(random_adapter(served.model_dir, n) for n in range(3))], found, strict=True
    ):
        expected_PV = next_logprobs(model, prompts)[:, ids]
        np.testing.assert_allclose([[row[i] for i in ids] for row in rows], expected_PV, atol=2e-4)


def test_app_an_adapter_that_everyone_asks_is_merged_and_takes_turns_with_base_and_lora(served: Served):
    prompts = [[1, *range(20 + i, 50 + 2 * i), 3, 2] for i in range(5)]
    ids = list(range(200))
    models = {
        "tiny": base_model(served),
        served.adapter(0): random_adapter(served.model_dir, 0),
        served.adapter(MERGED): random_adapter(served.model_dir, MERGED, rank=16),
    }
    asked = [name for _ in range(4) for name in models]

    async def mixed(client: Client) -> list[list[dict[int, float]]]:
        return await asyncio.gather(*(client.next_token_logprobs(name, prompts, ids) for name in asked))

    for name, rows in zip(asked, ask(served, mixed, Limits(in_flight=12)), strict=True):
        expected_PV = next_logprobs(models[name], prompts)[:, ids]
        np.testing.assert_allclose([[row[i] for i in ids] for row in rows], expected_PV, atol=2e-4, err_msg=name)


def test_app_many_first_requests_for_one_adapter_all_succeed(served: Served):
    async def crowd(client: Client) -> list[Any]:
        return await asyncio.gather(
            *(client.complete(served.adapter(i % 3), [PROMPT], max_tokens=2) for i in range(24))
        )

    answers = ask(served, crowd, Limits(in_flight=24, attempts=1))
    assert len(answers) == 24


def test_app_answers_stop_at_the_given_tokens_and_say_their_tokens(served: Served):
    share_V = np.exp(next_logprobs(base_model(served), [PROMPT])[0])
    stops = [int(i) for i in np.argsort(share_V)[-20:]]
    answers = ask(served, lambda c: c.complete("tiny", [PROMPT] * 20, n=4, max_tokens=30, stop_ids=stops))
    flat = [a for group in answers for a in group]
    assert {a.finish for a in flat} <= {"stop", "length"}
    for answer in flat:
        assert answer.tokens is not None
        assert (answer.tokens[-1] in [*stops, 3]) == (answer.finish == "stop")
        assert not set(answer.tokens[:-1]) & set(stops)
        assert len(answer.tokens) <= 30


def chi_square(counts_V: np.ndarray, share_V: np.ndarray) -> tuple[float, int]:
    """Pearson's statistic over words expected five times or more, the rest pooled; and its degrees of freedom."""
    expected_V = share_V * counts_V.sum()
    often = expected_V >= 5
    observed = np.append(counts_V[often], counts_V[~often].sum())
    expected = np.append(expected_V[often], expected_V[~often].sum())
    used = expected > 0
    return float(((observed - expected)[used] ** 2 / expected[used]).sum()), int(used.sum()) - 1


@pytest.mark.parametrize("adapter", [None, 0])
def test_app_samples_of_equal_prompts_are_independent_draws_of_the_model(served: Served, adapter: int | None):
    """256 equal prompts x 16 samples in four requests: right distribution, no echo within or across prompts."""
    name, model = (
        ("tiny", base_model(served))
        if adapter is None
        else (served.adapter(adapter), random_adapter(served.model_dir, adapter))
    )
    share_V = np.exp(next_logprobs(model, [PROMPT])[0])
    answers = ask(served, lambda c: c.complete(name, [PROMPT] * 256, n=16, max_tokens=1))
    first = np.array([[a.tokens[0] for a in group] for group in answers])
    statistic, df = chi_square(np.bincount(first.ravel(), minlength=len(share_V)), share_V)
    assert statistic < df + 5 * np.sqrt(2 * df)
    # Pairs agree as often as independent draws do: within a prompt, across prompts, across requests.
    agree = float((share_V**2).sum())
    pairs = {
        "within": (first[:, :-1] == first[:, 1:]).mean(),
        "across": (first[:-1] == first[1:]).mean(),
        "requests": (first[:64] == first[64:128]).mean(),
    }
    for where, share in pairs.items():
        n = first[:, 1:].size if where == "within" else first[1:].size if where == "across" else first[:64].size
        assert abs(share - agree) < 5 * np.sqrt(agree * (1 - agree) / n), where


def test_app_long_answers_to_equal_prompts_are_all_different(served: Served):
    groups = ask(served, lambda c: c.complete("tiny", [PROMPT] * 64, n=4, max_tokens=12))
    answers = [a.tokens for group in groups for a in group if a.finish == "length"]  # two may end at once by chance
    assert len(answers) > 128 and max(Counter(answers).values()) == 1


def test_app_judge_equals_enumeration_of_all_numbers_in_transformers(served: Served):
    tokenizer = make_tokenizer("digits")
    render, model = Renderer(tokenizer).prompt, base_model(served)
    scorer = Scorer("harm", "Rate harm, 0 to 100.")
    pairs = [("Should I?", "ask a doctor"), ("Why?", "always ask money")]
    exact = Options(min_mass=1e-9, expand_mass=0.0, overflow_mass=0.0)

    async def run(client: Client) -> Any:
        return await Judge(client, "tiny", tokenizer, render, exact).judge(scorer, pairs)

    judged = ask(served, run)
    digits = [tokenizer.encode(str(d), add_special_tokens=False)[0] for d in range(10)]
    for (question, answer), judgement in zip(pairs, judged, strict=True):
        text = f"{scorer.rubric}\nQuestion: {question}\nAnswer: <<<{answer}>>>\nScore:"
        prompt = render([{"role": "user", "content": text}])
        mass_N = []
        for n in NUMBERS:
            path = tokenizer.encode(str(n), add_special_tokens=False)
            rows = np.exp(next_logprobs(model, [[*prompt, *path[:i]] for i in range(len(path) + 1)]))
            ended = 1 - rows[-1, digits].sum() if n else 1.0
            mass_N.append(np.prod([rows[i, token] for i, token in enumerate(path)]) * ended)
        assert judgement.mass == pytest.approx(sum(mass_N), rel=1e-3)
        assert judgement.score == pytest.approx(np.dot(NUMBERS, mass_N) / sum(mass_N), abs=1e-2)


def test_app_an_engine_killed_under_load_comes_back_and_the_client_with_it(served: Served):
    engine = next(p for p in psutil.Process().children(recursive=True) if "EngineCore" in p.name())

    async def load(client: Client) -> Any:
        asked = asyncio.ensure_future(client.complete(served.adapter(0), [PROMPT] * 512, n=8, max_tokens=60))
        await asyncio.sleep(0.5)  # some requests are under way, none has to be
        os.kill(engine.pid, signal.SIGKILL)
        # The dead engine cannot load another adapter: that is no fault of the adapter.
        unasked = await client.complete(served.adapter(UNASKED), [PROMPT], max_tokens=2)
        return await asked, unasked, client.retried

    answers, unasked, retried = ask(served, load, PATIENT)
    assert [len(group) for group in answers] == [8] * 512
    assert len(unasked) == 1 and retried
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def test_app_stands_though_a_replica_is_lost_while_another_starts(served: Served):
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_replica_while_another_starts, replicas())
        two = deploy(replace(served.spec, replicas=2), served.app.token_file)
        killed.result()  # raises where none was
    assert two == served.app and len(replicas()) == 2
    assert len(ask(served, lambda c: c.complete("tiny", [PROMPT], max_tokens=2))) == 1


def test_app_a_failed_deploy_is_explained_and_the_next_one_stands_though_its_replica_dies_as_it_starts(
    served: Served, tmp_path: Path
):
    with pytest.raises(MachineError, match="did not start"):
        deploy(replace(served.spec, model_dir=str(tmp_path)), served.app.token_file)
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_starting_replica, replicas())
        again = deploy(served.spec, served.app.token_file)
        killed.result()  # raises where none was
    assert again == served.app  # at the same URL
    assert len(ask(served, lambda c: c.complete("tiny", [PROMPT], max_tokens=2))) == 1
    with pytest.raises(MachineError, match="listens on"):
        deploy(replace(served.spec, port=1), served.app.token_file)


def test_app_no_process_outlives_a_replica_that_is_killed(served: Served):
    (replica,) = replicas()
    engines = [p for p in replica.children(recursive=True) if p.is_running()]
    assert any("EngineCore" in p.name() for p in engines)
    replica.kill()
    _gone, alive = psutil.wait_procs(engines, timeout=30)
    assert not alive
    assert len(ask(served, lambda c: c.complete("tiny", [PROMPT], max_tokens=2), PATIENT)) == 1
