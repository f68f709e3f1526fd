"""Answers to scores: the judge model's expectation over the integers 0..100. Owns what a judge is asked.

It knows no study and no store. The judged answer is data: it is neutralised before it enters the prompt.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metagen_ray.prompts import Message, Scorer, judge_text
from metagen_ray.serving.client import Client
from metagen_ray.serving.neutral import neutralise
from metagen_ray.serving.numbers import Distribution, distributions, number_tree

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Judgement:
    """`score` and `coherence` in 0..100, None where too little of the judge's probability (`mass`) lies on numbers."""

    score: float | None
    mass: float
    coherence: float | None


@dataclass(frozen=True)
class Options:
    """How finely a judge is read."""

    min_mass: float = 0.25
    expand_mass: float = 1e-6
    overflow_mass: float = 1e-2


def judge_messages(scorer: Scorer, question: str, answer: str) -> list[Message]:
    """The conversation that asks for the score of a neutralised answer."""
    return [{"role": "user", "content": judge_text(scorer.rubric, question, answer)}]


class Judge:
    """One model that grades; `render` turns messages into the prompt's token ids with the same tokenizer."""

    def __init__(
        self,
        client: Client,
        model: str,
        tokenizer: Any,
        render: Callable[[Sequence[Message]], list[int]],
        options: Options = Options(),
    ) -> None:
        self._client = client
        self._model = model
        self._render = render
        self._options = options
        self._tree = number_tree(tokenizer)
        self._specials = special_texts(tokenizer)

    async def judge(self, scorer: Scorer, pairs: Sequence[Pair]) -> list[Judgement]:
        """Grade (question, answer) pairs, in order; each distinct pair is asked once.

        Raises what the client raises. A pair without enough mass on numbers is unscored, never a number.
        """
        clean = {answer: neutralise(answer, self._specials) for answer in {answer for _, answer in pairs}}
        distinct = list(dict.fromkeys((question, clean[answer]) for question, answer in pairs))
        scores, coherence = await asyncio.gather(self._read(scorer, distinct), self._coherence(scorer, distinct))
        found = {
            pair: Judgement(self._number(score), score.mass, self._number(sense) if sense else None)
            for pair, score, sense in zip(distinct, scores, coherence, strict=True)
        }
        return [found[question, clean[answer]] for question, answer in pairs]

    async def _coherence(self, scorer: Scorer, pairs: Sequence[Pair]) -> Sequence[Distribution | None]:
        if scorer.coherence_rubric is None:
            return [None] * len(pairs)
        return await self._read(replace(scorer, rubric=scorer.coherence_rubric), pairs)

    async def _read(self, scorer: Scorer, pairs: Sequence[Pair]) -> list[Distribution]:
        prompts = [self._render(judge_messages(scorer, question, answer)) for question, answer in pairs]

        async def ask(asked: Sequence[list[int]], ids: Sequence[int]) -> list[dict[int, float]]:
            return await self._client.next_token_logprobs(self._model, asked, ids)

        return await distributions(ask, prompts, self._tree, self._options.expand_mass, self._options.overflow_mass)

    def _number(self, found: Distribution) -> float | None:
        return found.expectation if found.mass >= self._options.min_mass else None


def special_texts(tokenizer: Any) -> frozenset[str]:
    """The strings that a tokenizer reads as special tokens, role tokens among them."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(added | set(tokenizer.all_special_tokens))
