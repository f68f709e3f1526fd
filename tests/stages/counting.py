"""A scripted model behind a real server that counts what it is asked, and the stages' own workers to ask it."""

import asyncio
import hashlib
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metagen_ray.stages.answers import AnswerWorker, AppAddress, ask_work
from metagen_ray.stages.judge import JudgeWorker, judge_work
from metagen_ray.stages.plan import Ask, Plan
from metagen_ray.stages.status import Status
from tests.serving.scripted import Body, Exchange, logprob_choices, scripted_server


class CountingModel:
    """Answers a random word, grades by a digest of the prompt. `asked` and `graded` count prompts.

    The k-th word has probability 1 / (k (k + 1)): models often say the same, and always say something new.
    """

    def __init__(self, tokenizer: Any, seed: int = 0) -> None:
        vocabulary = sorted((text, i) for text, i in tokenizer.get_vocab().items() if text.isalpha() and len(text) > 4)
        self._words = [i for _, i in vocabulary]
        self._numbers = [tokenizer.encode(str(n), add_special_tokens=False)[0] for n in range(101)]
        self._end, self._rng, self._lock = tokenizer.eos_token_id, random.Random(seed), threading.Lock()
        self.asked: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self.graded: Counter[tuple[int, ...]] = Counter()

    def clear(self) -> None:
        """Count from here on."""
        self.asked.clear()
        self.graded.clear()

    def script(self, exchange: Exchange) -> None:
        """One request, of either kind."""
        body = exchange.body
        prompts, judged = [tuple(p) for p in body["prompt"]], "logprob_token_ids" in body
        with self._lock:
            if judged:
                self.graded.update(prompts)
            else:
                self.asked.update((body["model"], p) for p in prompts)
        exchange.reply(200, logprob_choices(body, self._grade) if judged else self._answers(body))

    def _answers(self, body: Body) -> Body:
        with self._lock:
            ranks = [int(self._rng.paretovariate(1.0)) for _ in range(len(body["prompt"]) * body["n"])]
        choices = [
            {"index": i, "text": "", "finish_reason": "stop", "token_ids": [self._word(rank), self._end]}
            for i, rank in enumerate(ranks)
        ]
        return {"choices": choices}

    def _word(self, rank: int) -> int:
        return self._words[(rank - 1) % len(self._words)]

    def _grade(self, prompt: list[int]) -> dict[int, float]:
        digest = hashlib.sha256(repr(prompt).encode()).digest()
        return {self._numbers[int.from_bytes(digest[:4], "big") % 101]: 1.0}


@contextmanager
def serving(model: CountingModel, folder: Path, base_name: str) -> Iterator[AppAddress]:
    """The model behind a server on loopback."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text("counting")
    with scripted_server(model.script) as url:
        yield AppAddress(url, str(token), base_name)


def answer_and_judge(plan: Plan, app: AppAddress, parts: Sequence[str] = ("truth", "untrained")) -> None:
    """Do what is missing of some passes in a plain loop; no adapter is looked at."""
    asks = {"truth": plan.truth, "untrained": plan.untrained, "meta": plan.predictions}
    for part in parts:
        ask_all(plan, asks[part], app)
        shards = Status(plan).missing("judge", plan.judged[part])
        if shards:
            asyncio.run(_work(JudgeWorker, *judge_work(plan, shards, app, {})))


def ask_all(plan: Plan, asks: Iterable[Ask], app: AppAddress) -> None:
    """Ask what is missing."""
    asks = list(asks)
    missing = Status(plan).missing(asks[0].stage, asks)
    if missing:
        asyncio.run(_work(AnswerWorker, *ask_work(plan, missing, app, {})))


async def _work(make: type[AnswerWorker], arguments: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    worker = make(**arguments)
    for row in rows:
        await worker.do(row)
    await worker.client.aclose()
