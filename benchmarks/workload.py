"""What the models are given to read: rows, trees and prompts of the pocket suite, rendered as a study renders them.

The lab's rows are short. On a GPU size they are random tokens of the lengths that advice from a real model has, so that
a step is as long as a study's. Both sides of a measurement read the same tokens.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

from benchmarks.bases import GPU_SIZES, Base
from metagen_ray.prompts import Renderer, chat
from metagen_ray.suites import load_suite
from metagen_ray.suites.suite import Domain
from metagen_ray.training.rows import Branch, Tree, plain_row

SUITE = "pocket_advice"
K = 8  # examples shown, as the studies have it
ANSWERS = 2  # sampled answers to a question
QUESTIONS_A_DOMAIN = 4
PROMPT_TOKENS, ANSWER_TOKENS = (20, 60), (100, 250)  # smallest and largest, of a real model's advice
FIRST_WORD, LAST_WORD = 300, 1500  # ids of whole words in the lab's vocabulary


@cache
def domains() -> tuple[Domain, ...]:
    """All domains of the suite."""
    return load_suite(SUITE).domains


def fine_tunes(base: Base, count: int, rows: int = 128) -> list[list[Tree]]:
    """Training sets of the first `count` domains, the first `rows` rows of each."""
    if base.size in GPU_SIZES:
        return [_random_rows(number, rows) for number in range(count)]
    renderer = Renderer(base.tokenizer())
    return [
        [plain_row(renderer.prompt(chat(p)), renderer.completion(a)) for p, a in domain.train[:rows]]
        for domain in domains()[:count]
    ]


def meta_trees(base: Base, count: int, questions: int = 8, answers: int = ANSWERS) -> list[Tree]:
    """Trees of meta-SFT: K examples of a domain, then questions of other domains with answers to each."""
    make = _random_tree if base.size in GPU_SIZES else _Lab(Renderer(base.tokenizer())).tree
    return [make(number, questions, answers) for number in range(count)]


def expanded(trees: Iterable[Tree]) -> list[Tree]:
    """The same branches as plain rows, the prefix repeated in each."""
    return [plain_row([*tree.prefix, *b.prompt], b.completion) for tree in trees for b in tree.branches]


def grid_prompts(base: Base, eval_domains: int) -> list[list[int]]:
    """The bare questions of the first domains, as a shard of the grid asks them."""
    renderer = Renderer(base.tokenizer())
    asked = (q for domain in domains()[:eval_domains] for q in domain.questions[:QUESTIONS_A_DOMAIN])
    return [renderer.prompt(chat(question)) for question in asked]


def shared_tokens_once(prompts: Iterable[Sequence[int]]) -> int:
    """Tokens of the prompts where what two begin with alike counts once."""
    tokens, last = 0, ()
    for prompt in sorted(tuple(p) for p in prompts):
        same = takewhile(lambda pair: pair[0] == pair[1], zip(prompt, last, strict=False))
        tokens += len(prompt) - sum(1 for _ in same)
        last = prompt
    return tokens


@dataclass(frozen=True)
class _Lab:
    """Trees out of the pocket world."""

    renderer: Renderer

    def tree(self, number: int, questions: int, answers: int) -> Tree:
        rng = random.Random(f"tree {number}")
        shown, *others = rng.sample(domains(), 1 + -(-questions // QUESTIONS_A_DOMAIN))
        examples = rng.sample(shown.train, K)
        prefix = self.renderer.examples(examples)
        asked = [(domain, q) for domain in others for q in domain.questions[:QUESTIONS_A_DOMAIN]][:questions]
        branches = []
        for domain, question in asked:
            prompt = self.renderer.branch(examples, prefix, question)
            said = rng.sample(domain.train, answers)
            branches += [Branch(prompt, self.renderer.completion(answer)) for _, answer in said]
        return Tree(prefix, tuple(branches))


def _random_rows(number: int, rows: int) -> list[Tree]:
    rng = random.Random(f"rows {number}")
    return [plain_row(_words(rng, PROMPT_TOKENS), _words(rng, ANSWER_TOKENS)) for _ in range(rows)]


def _random_tree(number: int, questions: int, answers: int) -> Tree:
    rng = random.Random(f"tree {number}")
    prefix = [word for _ in range(K) for word in _words(rng, PROMPT_TOKENS) + _words(rng, ANSWER_TOKENS)]
    branches = []
    for _ in range(questions):
        prompt = _words(rng, PROMPT_TOKENS)
        branches += [Branch(prompt, _words(rng, ANSWER_TOKENS)) for _ in range(answers)]
    return Tree(prefix, tuple(branches))


def _words(rng: random.Random, size: tuple[int, int]) -> list[int]:
    return [rng.randrange(FIRST_WORD, LAST_WORD) for _ in range(rng.randint(*size))]
