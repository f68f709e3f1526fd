"""The one client of the app, and of any other OpenAI-compatible server. Owns requests, retries and time-outs.

It knows nothing of studies. A request carries many prompts of one model, as token ids (or as text, where a
server takes no ids). No request ever carries a seed: an engine gives one seed to every prompt of a request, and
equal prompts would then give equal answers.
"""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx

from metagen_ray.errors import InputError, MachineError, StageError

T = TypeVar("T")
Prompt = list[int] | str
IDS_PER_REQUEST = 128  # vLLM's bound on logprob_token_ids
WORTH_KEEPING_TOKENS = 32  # a block of the prefix cache, the least that two prompts can share there
TELLING_TOKENS = 64  # of a shared beginning: more than a system line, so that k-draws are told apart
SESSION = "x-session-id"  # the header by which the app keeps together what shares a prefix or an adapter
SERVED_BY = "x-served-by"  # the header that names the node of the replica
CACHED = "x-cached-tokens"  # the header with the prompt tokens that were found in its prefix cache
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
FINISHED = frozenset({"stop", "length"})


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer. `tokens` are as sampled, with the stop token; None where the server gives text alone."""

    text: str
    tokens: tuple[int, ...] | None
    finish: str


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds a client works within."""

    prompts_per_request: int = 64
    in_flight: int = 4
    attempts: int = 5
    backoff_s: float = 1.0
    connect_s: float = 5.0
    read_s: float = 300.0


class HalfResponse(Exception):
    """A response that came with 200 but not whole."""


class Client:
    """Asks one server. Use it in one event loop, as `async with Client(url, token) as client`."""

    def __init__(self, url: str, token: str | None = None, limits: Limits = Limits()) -> None:
        self.url = url.rstrip("/")
        self.limits = limits
        self._served: Counter[str] = Counter()
        self._cached = 0
        self.retried: Counter[str] = Counter()  # attempts that were repeated, by what the one before gave
        self._slots = asyncio.Semaphore(limits.in_flight)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(limits.read_s, connect=limits.connect_s, pool=None),
            limits=httpx.Limits(max_connections=limits.in_flight, max_keepalive_connections=limits.in_flight),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

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
        """`n` independent answers to each prompt, in the order of the prompts.

        Raises InputError for what the server refuses, MachineError for a refused token, StageError when the
        attempts are used up.
        """
        body = {"n": n, "temperature": temperature, "top_p": 1.0, "max_tokens": max_tokens}
        # A server that takes text alone also refuses fields it does not know.
        if not any(isinstance(prompt, str) for prompt in prompts):
            body |= {"return_token_ids": True, "stop_token_ids": list(stop_ids)}
        elif stop_ids:
            raise InputError("stop_ids need prompts of token ids; send ids, or leave stop_ids out for text prompts")
        return await self._in_chunks(model, prompts, body, lambda choices: _completions(choices, n), n, _session)

    async def next_token_logprobs(
        self, model: str, prompts: Sequence[list[int]], candidate_ids: Sequence[int]
    ) -> list[dict[int, float]]:
        """Log-probability of each candidate as the next token of each prompt, at temperature 1; exact."""
        unique = list(dict.fromkeys(candidate_ids))
        if not unique:
            raise InputError(f"{model}: no candidate tokens to score; name at least one")
        merged: list[dict[int, float]] = [{} for _ in prompts]
        for start in range(0, len(unique), IDS_PER_REQUEST):
            ids = unique[start : start + IDS_PER_REQUEST]
            body = {
                "max_tokens": 1,
                "temperature": 0.0,
                "logprobs": len(ids),
                "logprob_token_ids": ids,
                "return_tokens_as_token_ids": True,
            }
            found = await self._in_chunks(model, prompts, body, lambda choices, ids=ids: _logprobs(choices, ids), 1)
            for into, part in zip(merged, found, strict=True):
                into |= part
        return merged

    def take_served(self) -> tuple[Counter[str], int]:
        """Since this was last called: requests by the node that answered, and prompt tokens found in prefix caches.

        Empty and 0 where the server does not tell, as another than ours does not.
        """
        taken, self._served, self._cached = (self._served, self._cached), Counter(), 0
        return taken

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once the server lists its models; MachineError if it does not within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._lists_models():
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise MachineError(f"{self.url} did not answer within {timeout_s:.0f} s; is the app deployed?") from None

    async def _lists_models(self) -> bool:
        try:
            response = await self._http.get(f"{self.url}/v1/models", timeout=10.0)
        except httpx.RequestError:
            return False
        if response.status_code in (401, 403):
            raise MachineError(_refused_token(self.url, response.status_code))
        return response.status_code == 200

    async def _in_chunks(
        self,
        model: str,
        prompts: Sequence[Prompt],
        body: Mapping[str, Any],
        read: Callable[[list[dict[str, Any]]], list[T]],
        choices_per_prompt: int,
        session: Callable[[str, Sequence[Prompt]], str] = lambda model, prompts: "",
    ) -> list[T]:
        # Neighbours in sorted order share prefixes: they travel together and meet in the prefix cache.
        order = sorted(range(len(prompts)), key=lambda i: prompts[i])
        chunks = _requests(order, prompts, self.limits.prompts_per_request)

        async def ask(chunk: list[int]) -> list[T]:
            asked = [prompts[i] for i in chunk]
            choices = await self._choices(
                {**body, "model": model, "prompt": asked}, len(chunk) * choices_per_prompt, session(model, asked)
            )
            return read(choices)

        answers = await _all([ask(chunk) for chunk in chunks])
        by_prompt = {
            i: answer
            for chunk, part in zip(chunks, answers, strict=True)
            for i, answer in zip(chunk, part, strict=True)
        }
        return [by_prompt[i] for i in range(len(prompts))]

    async def _choices(self, body: Mapping[str, Any], expected: int, session: str) -> list[dict[str, Any]]:
        """One request with its retries; the choices in order of their index."""
        what = f"{body['model']} at {self.url} ({len(body['prompt'])} prompts)"
        reason = ""
        for attempt in range(self.limits.attempts):
            if attempt:
                self.retried[reason[:80]] += 1
                await asyncio.sleep(min(15.0, self.limits.backoff_s * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25))
            try:
                async with self._slots:
                    headers = {SESSION: session} if session else {}
                    response = await self._http.post(f"{self.url}/v1/completions", json=body, headers=headers)
                if response.status_code == 200:
                    choices = _whole(response, expected)
                    self._served.update(filter(None, [response.headers.get(SERVED_BY)]))
                    self._cached += int(response.headers.get(CACHED, 0))
                    return choices
                reason = f"HTTP {response.status_code}: {_message(response)}"
                if response.status_code not in RETRIED:
                    raise _final(what, self.url, response.status_code, reason)
            except (httpx.RequestError, HalfResponse) as error:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise StageError(
            f"{what}: no answer after {self.limits.attempts} attempts; the last gave {reason}; look at the app's log"
        )


def _requests(order: Sequence[int], prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """Sorted prompts by request, `size` at most; a request ends early where that keeps a shared prefix in one piece.

    Two requests may go to two replicas, and each would read the prefix.
    """
    chunks, start = [], 0
    while len(order) - start > size:
        full = start + size
        whole = _shared(prompts[order[full - 1]], prompts[order[full]])
        ends = range(full, start + size // 2, -1)
        early = (e for e in ends if whole - _shared(prompts[order[e - 1]], prompts[order[e]]) >= WORTH_KEEPING_TOKENS)
        end = next(early, full)
        chunks.append([*order[start:end]])
        start = end
    return [*chunks, [*order[start:]]] if start < len(order) else chunks


def _session(model: str, prompts: Sequence[Prompt]) -> str:
    """Names what one replica should keep: the adapter, and the beginning that a request's first prompts share.

    "" where it is neither: a base without examples is the same everywhere.
    """
    first, shared = prompts[0], _shared(prompts[0], prompts[min(1, len(prompts) - 1)])
    begins = first[: min(shared, TELLING_TOKENS)] if shared >= WORTH_KEEPING_TOKENS else ""
    if not begins and ":" not in model:
        return ""
    return hashlib.sha256(f"{model} {begins}".encode()).hexdigest()[:32]


def _shared(one: Prompt, other: Prompt) -> int:
    """How many tokens two prompts share from their beginning."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


async def _all(asks: Sequence[Awaitable[T]]) -> list[T]:
    """Gather, but end the rest when one fails."""
    tasks = [asyncio.ensure_future(ask) for ask in asks]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _whole(response: httpx.Response, expected: int) -> list[dict[str, Any]]:
    """The choices of a response, all there and all finished; HalfResponse otherwise."""
    try:
        choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
    except (ValueError, KeyError, TypeError) as error:
        raise HalfResponse(f"unreadable body ({error!r})") from None
    if [choice["index"] for choice in choices] != list(range(expected)):
        raise HalfResponse(f"{len(choices)} choices where {expected} were asked for")
    unfinished = {choice.get("finish_reason") for choice in choices} - FINISHED
    if unfinished:
        raise HalfResponse(f"a choice finished by {sorted(map(str, unfinished))}")
    return choices


def _completions(choices: list[dict[str, Any]], n: int) -> list[list[Completion]]:
    flat = [Completion(c["text"], _tokens(c), c["finish_reason"]) for c in choices]
    return [flat[start : start + n] for start in range(0, len(flat), n)]


def _tokens(choice: Mapping[str, Any]) -> tuple[int, ...] | None:
    ids = choice.get("token_ids")
    return None if ids is None else tuple(ids)


def _logprobs(choices: list[dict[str, Any]], ids: Sequence[int]) -> list[dict[int, float]]:
    found = []
    for choice in choices:
        named = ((choice.get("logprobs") or {}).get("top_logprobs") or [{}])[0]
        try:
            found.append({i: named[f"token_id:{i}"] for i in ids})
        except KeyError as missing:
            raise StageError(
                f"the server gives no log-probability for {missing}; it must know logprob_token_ids, as vLLM does"
            ) from None
    return found


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
        text = body["error"]["message"] if "error" in body else body["message"]
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(str(text).split())[:300]


def _refused_token(url: str, status: int) -> str:
    return f"{url} refused the bearer token (HTTP {status}); use the token the app was deployed with"


def _final(what: str, url: str, status: int, reason: str) -> Exception:
    """The error of a status that no retry mends."""
    return MachineError(_refused_token(url, status)) if status in (401, 403) else InputError(f"{what}: {reason}")
