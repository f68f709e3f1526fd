"""Row 5: log-likelihoods of answers in bulk, against vLLM's prompt_logprobs.

Sixteen prefixes of K = 8 examples, 20 questions under each with 2 answers; fewer prefixes at the larger sizes. By
default vLLM reads no prefix cache where prompt log-probabilities are asked; `skip_reading_prefix_cache=False` makes it,
and what it then returns for cached tokens is unwritten memory: a branch whose completion reaches into a cached block is
unusable and counted. On a GPU machine the peer is stock transformers on padded rows, sorted by length.
"""

import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.bases import CPU_SIZES, Base, make_base
from benchmarks.engine import Vllm, spec_of
from benchmarks.measure import Options, Row, compared, interleave, rates
from benchmarks.peak import decoder_of, forward_flops, memory_gib, peak_rate, reads_of, share
from benchmarks.peers import PeftLoop
from metagen_ray.study import Recipe
from metagen_ray.training.base import AdaptedModel
from metagen_ray.training.likelihoods import Query, score_answers
from metagen_ray.training.lora import LoraShape
from metagen_ray.training.rows import Tree

QUESTIONS, ANSWERS = 20, 2
PREFIXES = {"1M": 16, "10M": 4}
PADDED_ROWS = 16
WRONG_NATS = 1e-2  # above it a log-likelihood is not imprecise but of something else


def rows(options: Options) -> list[Row]:
    """Every peer at every size."""
    with tempfile.TemporaryDirectory(prefix="metagen-bench-") as folder:
        bases = [make_base(size, Path(folder)) for size in options.sizes]
        return [row for base in bases for row in _compare(base, options)]


def _compare(base: Base, options: Options) -> list[Row]:
    trees = workload.meta_trees(base, 2 if options.quick else PREFIXES.get(base.size, 4), QUESTIONS, ANSWERS)
    found: dict[str, list[float]] = {}
    work: dict[str, Callable[[], list[float]]] = {"ours": _ours(base, trees)}
    use_vllm = base.size in CPU_SIZES and importlib.util.find_spec("vllm") is not None
    work |= _vllm(base, trees) if use_vllm else _transformers(base, trees)

    def keep(name: str) -> None:
        found[name] = work[name]()

    memory = memory_gib(partial(keep, "ours"))
    seconds = interleave({name: partial(keep, name) for name in work}, options.rounds)
    reads = reads_of(trees)
    of_peak = share(forward_flops(decoder_of(base), reads), seconds["ours"], peak_rate(base, reads_of(trees[:2])))
    return [
        compared(
            5,
            base.size,
            f"scoring {QUESTIONS} questions x {ANSWERS} answers under each prefix",
            name,
            "answers/s",
            rates(seconds["ours"], len(found["ours"])),
            rates(seconds[name], len(found["ours"])),
            **_agreement(found["ours"], found[name]),
            peak_share=of_peak,
            aim={"vLLM prompt_logprobs": 6.0, "vLLM prompt_logprobs, prefix cache forced on": 1.2}.get(name),
            tokens_per_s=statistics.median(rates(seconds["ours"], reads.tokens)),
            memory_gib=memory,
        )
        for name in work
        if name != "ours"
    ]


def _agreement(ours: Sequence[float], peer: Sequence[float]) -> dict[str, Any]:
    gaps = [abs(a - b) for a, b in zip(ours, peer, strict=True)]
    usable = [gap for gap in gaps if gap <= WRONG_NATS]
    return {
        "parity": max(usable, default=None),
        "parity_of": "largest difference of a log-likelihood, nats, over the usable ones",
        "unusable": len(gaps) - len(usable),
    }


def _ours(base: Base, trees: list[Tree]) -> Callable[[], list[float]]:
    """With an adapter that changes nothing, which the peer is spared."""
    model = AdaptedModel(base.load(), [LoraShape.of(Recipe())], base.device)
    queries = [query for tree in trees for query in _queries(tree)]
    return lambda: [value for answers in score_answers(model, queries) for value in answers]


def _queries(tree: Tree) -> list[Query]:
    """The tree's questions in order, each with its answers."""
    answers: dict[tuple[int, ...], list[list[int]]] = {}
    for branch in tree.branches:
        answers.setdefault(tuple(branch.prompt), []).append(branch.completion)
    return [Query(tree.prefix, list(question), tuple(given)) for question, given in answers.items()]


def _vllm(base: Base, trees: list[Tree]) -> dict[str, Callable[[], list[float]]]:
    engine = Vllm(spec_of(base))
    expanded = workload.expanded(trees)
    prompts = [[*row.branches[0].prompt, *row.branches[0].completion] for row in expanded]
    sizes = [len(row.branches[0].completion) for row in expanded]

    def scores(skip: bool | None) -> list[float]:
        engine.forget()
        asked = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        outputs = engine.generate(prompts, **asked, skip_reading_prefix_cache=skip)
        return [_completion(o, prompt, size) for o, prompt, size in zip(outputs, prompts, sizes, strict=True)]

    return {
        "vLLM prompt_logprobs": partial(scores, None),
        "vLLM prompt_logprobs, prefix cache forced on": partial(scores, False),
    }


def _completion(output: Any, prompt: Sequence[int], size: int) -> float:
    """Sum over the last `size` tokens; a token that vLLM has not written counts as a nonsense number."""
    tail = zip(output.prompt_logprobs[-size:], prompt[-size:], strict=True)
    return sum(found[token].logprob if token in found else 1e6 for found, token in tail)


def _transformers(base: Base, trees: list[Tree]) -> dict[str, Callable[[], list[float]]]:
    expanded = workload.expanded(trees)
    peer = PeftLoop(base, Recipe())
    return {
        f"transformers on the expanded rows, padded, {PADDED_ROWS} at once": partial(peer.score, expanded, PADDED_ROWS)
    }
