import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from metagen_ray.errors import InputError, MachineError, StageError, UserError
from metagen_ray.serving.client import Client, Limits
from tests.serving.scripted import Exchange, echo_choices, in_turn, logprob_choices, scripted_server

T = TypeVar("T")
QUICK = Limits(prompts_per_request=4, in_flight=3, attempts=3, backoff_s=0.01, connect_s=1.0, read_s=0.5)


def ask(url: str, call: Callable[[Client], Awaitable[T]], limits: Limits = QUICK, token: str | None = None) -> T:
    async def run() -> T:
        async with Client(url, token, limits) as client:
            return await call(client)

    return asyncio.run(run())


def ok(exchange: Exchange) -> None:
    exchange.reply(200, echo_choices(exchange.body))


def status(code: int, text: str = "broken") -> Callable[[Exchange], None]:
    return lambda exchange: exchange.reply(code, {"error": {"message": text}})


def half(exchange: Exchange) -> None:
    exchange.reply(200, echo_choices(exchange.body), promised=100_000)


def short(exchange: Exchange) -> None:
    exchange.reply(200, {"choices": echo_choices(exchange.body)["choices"][:-1]})


def test_complete_many_prompts_come_back_in_order_with_all_samples():
    prompts = [[5, i % 7, 100 + i] for i in range(30)]
    with scripted_server(ok) as url:
        answers = ask(url, lambda c: c.complete("m", prompts, n=3, max_tokens=4, stop_ids=[2]))
    assert [[a.tokens for a in of_prompt] for of_prompt in answers] == [
        [(prompt[-1], s) for s in range(3)] for prompt in prompts
    ]


def test_complete_requests_are_chunked_bounded_and_without_a_seed():
    seen, running, most = [], [], []

    def script(exchange: Exchange) -> None:
        running.append(1)
        most.append(len(running))
        seen.append((exchange.body, exchange.headers["Authorization"]))
        ok(exchange)
        running.pop()

    with scripted_server(script) as url:
        ask(url, lambda c: c.complete("m:k", [[i] for i in range(22)], n=2, max_tokens=4), token="s3cret")
    assert sorted(len(body["prompt"]) for body, _ in seen) == [2, 4, 4, 4, 4, 4]
    assert max(most) <= QUICK.in_flight
    assert all("seed" not in body and body["model"] == "m:k" and body["top_p"] == 1.0 for body, _ in seen)
    assert {authorization for _, authorization in seen} == {"Bearer s3cret"}


def sent(prompts: list[list[int]], size: int) -> list[list[list[int]]]:
    """The prompts of each request, in sorted order."""
    bodies = []
    with scripted_server(lambda e: (bodies.append(e.body["prompt"]), ok(e))[1]) as url:
        answers = ask(url, lambda c: c.complete("m", prompts, max_tokens=4), Limits(prompts_per_request=size))
    assert [a[0].tokens for a in answers] == [(prompt[-1], 0) for prompt in prompts]
    return sorted(bodies)


def test_complete_prompts_of_one_long_prefix_travel_in_one_request():
    prefixes = [[100 + n] * 40 for n in range(4)]
    prompts = [prefix + [q] for q in range(5) for prefix in prefixes]
    requests = sent(prompts, 8)
    assert [len(r) for r in requests] == [5, 5, 5, 5]  # 8, 8 and 4 would read two prefixes twice
    assert all(len({tuple(p[:40]) for p in r}) == 1 for r in requests)


def test_complete_requests_are_full_where_prompts_share_little_or_all_the_same():
    apart = [[n, 7] for n in range(20)]
    short = [[n // 5] * 30 + [n] for n in range(20)]  # prefixes of less than a block
    same = [[9] * 40 + [n] for n in range(20)]
    long_runs = [[n // 10] * 40 + [n] for n in range(20)]  # an early end would leave requests less than half full
    for prompts in (apart, short, same):
        assert [len(r) for r in sent(prompts, 8)] == [8, 8, 4]
    assert [len(r) for r in sent(long_runs, 8)] == [8, 8, 4]


def test_complete_text_prompts_send_only_fields_that_every_server_knows():
    bodies = []
    with scripted_server(lambda e: (bodies.append(e.body), ok(e))[1]) as url:
        answers = ask(url, lambda c: c.complete("m", ["hello"], n=2, max_tokens=4))
    assert set(bodies[0]) == {"model", "prompt", "n", "temperature", "top_p", "max_tokens"}
    assert [(a.text, a.tokens) for a in answers[0]] == [("hello:0", None), ("hello:1", None)]


def test_complete_no_prompts_gives_no_answers():
    with scripted_server(status(500)) as url:
        assert ask(url, lambda c: c.complete("m", [], max_tokens=4)) == []


@pytest.mark.parametrize(
    "fault",
    [status(500), status(503), status(429), half, short, Exchange.hang],
    ids=["500", "503", "429", "half", "short", "hangs"],
)
def test_complete_a_passing_fault_is_retried(fault):
    async def complete(client: Client):
        return await client.complete("m", [[1], [2]], max_tokens=4), client.retried.total()

    with scripted_server(in_turn([fault, fault, ok])) as url:
        answers, retried = ask(url, complete)
    assert [a[0].text for a in answers] == ["1:0", "2:0"] and retried == 2


@pytest.mark.parametrize(
    "fault", [status(500, "engine died"), half, short, Exchange.hang], ids=["500", "half", "short", "hangs"]
)
def test_complete_a_lasting_fault_ends_in_an_error_with_model_and_url(fault):
    asked = []

    def counted(exchange: Exchange) -> None:
        asked.append(1)
        fault(exchange)

    with scripted_server(counted) as url, pytest.raises(StageError) as error:
        ask(url, lambda c: c.complete("base:key", [[1]], max_tokens=4))
    assert len(asked) == QUICK.attempts
    assert "base:key" in str(error.value) and url in str(error.value)


def test_complete_a_refused_connection_ends_in_an_error_with_the_url():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: nobody else takes the port
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(StageError, match=url):
            ask(url, lambda c: c.complete("m", [[1]], max_tokens=4))


@pytest.mark.parametrize(("code", "expected"), [(400, InputError), (404, InputError), (401, MachineError)])
def test_complete_what_no_retry_mends_is_raised_at_once(code: int, expected: type[UserError]):
    asked = []
    with (
        scripted_server(lambda e: (asked.append(1), status(code, "prompt too long")(e))[1]) as url,
        pytest.raises(expected, match=r"m at|bearer token"),
    ):
        ask(url, lambda c: c.complete("m", [[1]], max_tokens=4))
    assert len(asked) == 1


def test_logprobs_more_candidates_than_a_request_takes_are_merged():
    ids = list(range(300))
    share = {i: (i + 1) / 45150 for i in ids}
    bodies = []

    def script(exchange: Exchange) -> None:
        bodies.append(exchange.body)
        exchange.reply(200, logprob_choices(exchange.body, lambda _: share))

    with scripted_server(script) as url:
        found = ask(url, lambda c: c.next_token_logprobs("m", [[1], [2]], [*ids, 7]))
    assert [sorted(f) for f in found] == [ids, ids]
    assert found[0][299] == pytest.approx(-5.0137, abs=1e-3)
    assert max(len(body["logprob_token_ids"]) for body in bodies) == 128


def test_logprobs_a_server_without_them_is_named():
    with (
        scripted_server(
            lambda e: e.reply(200, {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        ) as url,
        pytest.raises(StageError, match="logprob_token_ids"),
    ):
        ask(url, lambda c: c.next_token_logprobs("m", [[1]], [3]))


def test_ready_waits_for_the_models_and_gives_up_in_time():
    up = in_turn([status(503), status(503), lambda e: e.reply(200, {"data": []})])
    with scripted_server(up) as url:
        ask(url, lambda c: c.wait_ready(5.0))
    with scripted_server(status(503)) as url, pytest.raises(MachineError, match="did not answer"):
        ask(url, lambda c: c.wait_ready(0.3))


def sessions(model: str, prompts: list[list[int]], size: int = 4) -> list[tuple[str, list[list[int]]]]:
    """(session, prompts) of every request."""
    seen: list[tuple[str, list[list[int]]]] = []

    def script(exchange: Exchange) -> None:
        seen.append((exchange.headers.get("x-session-id", ""), exchange.body["prompt"]))
        ok(exchange)

    limits = Limits(prompts_per_request=size, in_flight=1, attempts=1)
    with scripted_server(script) as url:
        ask(url, lambda c: c.complete(model, prompts, max_tokens=4), limits)
    return seen


def test_complete_requests_that_begin_alike_name_the_same_session_whatever_they_ask():
    prefixes = [[n, *range(100, 180)] for n in range(3)]
    first, second = (sessions("m", [[*p, q] for p in prefixes for q in range(q0, q0 + 4)]) for q0 in (200, 300))
    told = {prompt[0]: session for session, prompts in first for prompt in prompts}
    assert len(set(told.values())) == 3 and "" not in told.values()
    assert all(session == told[prompt[0]] for session, prompts in second for prompt in prompts)


def test_complete_adapters_have_a_session_each_and_a_base_without_examples_none():
    prompts = [[5, 6, n] for n in range(8)]
    base, one, other = (sessions(model, prompts) for model in ("m", "m:one", "m:two"))
    assert {session for session, _ in base} == {""}
    assert len({session for session, _ in one}) == 1 == len({session for session, _ in other})
    assert one[0][0] != other[0][0]
