"""Row 6: our judge against one that writes its number, and against one that thinks aloud first.

All three grade harm and sense of the same answers, through the same vLLM engine in this process. Ours reads the whole
distribution of the integers off the tree of digits, over a rubric that is read once, each distinct answer once. The
peers write one number greedily: less than an expectation, and the cheapest thing that gives a score. "Without sharing"
reads no prefix cache and grades every answer; the chain of thought keeps the prefix cache, writes 64 tokens, then the
number. Answers: 32 to each of 80 questions, sampled from the base, as a grid of 16 adapters with 2 samples has them.

The lab's rubric is one short line, and hardly a block of the prefix cache; a judge of real answers reads a rubric with
examples. So it is measured under both: the lab's, and one with examples in front, of RUBRIC_TOKENS or more.
"""

import asyncio
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from benchmarks import workload
from benchmarks.bases import Base, make_base
from benchmarks.engine import Vllm, spec_of
from benchmarks.measure import Options, Row, compared, interleave, rates
from benchmarks.peak import decoder_of, forward_flops, peak_rate, share
from metagen_ray.cost.work import Reads
from metagen_ray.prompts import Renderer, Scorer, judge_text
from metagen_ray.serving.client import Client
from metagen_ray.serving.judge import Judge, judge_messages
from metagen_ray.serving.neutral import neutralise
from metagen_ray.serving.numbers import NUMBERS
from metagen_ray.suites import load_suite
from metagen_ray.tokenizer import load_tokenizer

EVAL_DOMAINS, ANSWERS = 20, 32
ANSWER_TOKENS, THOUGHT_TOKENS = 24, 64
RUBRIC_TOKENS = 200
LONG_RUBRIC_SHARE = 8  # of the questions, one in so many: without sharing its prompts are seven times as long
BATCH = Reads(4096, logits=256)  # what the engine reads at once
SHARE_OF_ANSWERS = {"1M": 1, "10M": 8}  # one in so many is graded: the slow side stays under a minute
DIGITS, THOUGHT = "greedy digits without sharing", "64 tokens of thought, then the number"
Pair = tuple[str, str]


def rows(options: Options) -> list[Row]:
    """Both peers at every size, on the answers as sampled and on the distinct ones alone."""
    found = []
    with tempfile.TemporaryDirectory(prefix="metagen-bench-") as folder:
        for size in options.sizes:
            base = make_base(size, Path(folder))
            engine = Vllm(spec_of(base))
            try:
                sampled = _answers(base, engine, options)
                distinct = list(dict.fromkeys(sampled))
                short = load_suite(workload.SUITE).scorer
                found += _compare(base, engine, short, sampled, "a short rubric, answers as sampled", options)
                if len(distinct) < len(sampled):
                    found += _compare(base, engine, short, distinct, "a short rubric, distinct answers", options)
                few = sampled[: max(1, len(sampled) // LONG_RUBRIC_SHARE)]
                longer = with_examples(base, short)
                found += _compare(base, engine, longer, few, "a rubric with examples, answers as sampled", options)
            finally:
                engine.close()
    return found


def _answers(base: Base, engine: Vllm, options: Options) -> list[Pair]:
    """Questions and sampled answers, those of a question together."""
    renderer = Renderer(base.tokenizer())
    domains = workload.domains()[: 2 if options.quick else EVAL_DOMAINS]
    questions = [q for d in domains for q in d.questions[: workload.QUESTIONS_A_DOMAIN]]
    count = max(1, ANSWERS // SHARE_OF_ANSWERS.get(base.size, 8))
    sampling = {"n": count, "temperature": 1.0, "max_tokens": ANSWER_TOKENS, "stop_token_ids": [renderer.end_id]}
    outputs = engine.generate(workload.grid_prompts(base, len(domains)), **sampling)
    return [
        (question, renderer.decode(answer.token_ids))
        for question, output in zip(questions, outputs, strict=True)
        for answer in output.outputs
    ]


def with_examples(base: Base, scorer: Scorer) -> Scorer:
    """The scorer with examples before each of its rubrics, RUBRIC_TOKENS of them or a few more."""
    renderer, shown = Renderer(base.tokenizer()), ""
    rows = (row for domain in workload.domains() for row in domain.train)
    while len(renderer.plain(shown)) < RUBRIC_TOKENS:
        shown += judge_text(scorer.rubric, *next(rows)) + " 0\n"
    return replace(scorer, rubric=shown + scorer.rubric, coherence_rubric=shown + (scorer.coherence_rubric or ""))


def _compare(base: Base, engine: Vllm, scorer: Scorer, pairs: list[Pair], which: str, options: Options) -> list[Row]:
    tokenizer = load_tokenizer(base.directory)  # as a study has it
    renderer = Renderer(tokenizer)
    judge = Judge(cast(Client, engine), "base", tokenizer, renderer.prompt)
    prompts = _prompts(renderer, scorer, pairs)
    longest = max(len(tokenizer.encode(str(n), add_special_tokens=False)) for n in NUMBERS)
    greedy = {"temperature": 0.0, "ignore_eos": True}

    def fresh(work: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            engine.forget()
            work()

        return run

    sides = {
        "ours": fresh(lambda: asyncio.run(judge.judge(scorer, pairs))),
        DIGITS: fresh(partial(engine.generate, prompts, max_tokens=longest, skip_reading_prefix_cache=True, **greedy)),
        THOUGHT: fresh(partial(engine.generate, prompts, max_tokens=THOUGHT_TOKENS + longest, **greedy)),
    }
    seconds = interleave(sides, options.rounds)
    read = Reads(workload.shared_tokens_once(prompts), logits=len(set(map(tuple, prompts))))
    of_peak = share(forward_flops(decoder_of(base), read), seconds["ours"], peak_rate(base, BATCH))
    return [
        compared(
            6,
            base.size,
            f"judging, {which}",
            name,
            "answers/s",
            rates(seconds["ours"], len(pairs)),
            rates(seconds[name], len(pairs)),
            parity=_enumeration_gap(engine, judge, tokenizer, renderer, scorer, pairs[:20]),
            parity_of="largest difference of an expectation from enumeration of all 101 numbers, points",
            peak_share=of_peak,
            aim={DIGITS: 3.0, THOUGHT: 8.0}[name],
            answers=len(pairs),
            distinct=len(set(pairs)),
        )
        for name in (DIGITS, THOUGHT)
    ]


def _prompts(renderer: Renderer, scorer: Scorer, pairs: list[Pair]) -> list[list[int]]:
    """What the judge is asked about every answer: harm, then sense."""
    rubrics = [scorer, replace(scorer, rubric=scorer.coherence_rubric or scorer.rubric)]
    return [renderer.prompt(judge_messages(r, question, neutralise(a))) for r in rubrics for question, a in pairs]


def _enumeration_gap(
    engine: Vllm, judge: Judge, tokenizer: Any, renderer: Renderer, scorer: Scorer, pairs: list[Pair]
) -> float | None:
    """Our expectation against 101 prompts that end in a number each, scored whole; for answers that have one.

    None where the tokenizer spells numbers in several tokens: there a number must also be seen to end.
    """
    spelled = [tokenizer.encode(str(n), add_special_tokens=False) for n in NUMBERS]
    if any(len(tokens) > 1 for tokens in spelled):
        return None
    gaps = []
    for pair, judged in zip(pairs, asyncio.run(judge.judge(scorer, pairs)), strict=True):
        if judged.score is not None:
            prompt = renderer.prompt(judge_messages(scorer, pair[0], neutralise(pair[1])))
            gaps.append(abs(judged.score - _enumerated(engine, prompt, [token for (token,) in spelled])))
    return max(gaps, default=None)


def _enumerated(engine: Vllm, prompt: list[int], tokens: list[int]) -> float:
    asked = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
    outputs = engine.generate([[*prompt, token] for token in tokens], **asked)
    masses = [math.exp(o.prompt_logprobs[-1][token].logprob) for o, token in zip(outputs, tokens, strict=True)]
    return sum(n * mass for n, mass in zip(NUMBERS, masses, strict=True)) / sum(masses)
