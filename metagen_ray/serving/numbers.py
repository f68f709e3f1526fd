"""The integers 0..100 as paths of tokens, and the walk over them. Owns the tree; knows no rubric and no server.

A tokenizer may know a number as one token, or spell it in digits. Where a number's digits may go on ("7" to "73",
"73" to "731"), the number has ended when the next token is no digit: P(n) = P(path) x (1 - P(a digit next)).
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import exp
from typing import Any

NUMBERS = range(101)
CANDIDATES = 128  # ids that one request scores; as vLLM's bound on logprob_token_ids
Path = tuple[int, ...]
Ask = Callable[[Sequence[list[int]], Sequence[int]], Awaitable[list[dict[int, float]]]]


@dataclass
class Node:
    """A place in the tree: the tokens said so far."""

    path: Path
    number: int | None = None
    children: dict[int, "Node"] = field(default_factory=dict)
    digits: tuple[int, ...] = ()  # tokens by which the number would go on

    @cached_property
    def ids(self) -> frozenset[int]:
        """The next tokens whose probability is needed here."""
        return frozenset({*self.children, *self.digits})

    @cached_property
    def ends(self) -> tuple[tuple[int, int], ...]:
        """Next tokens after which a number has ended, each with its number; most nodes have these alone."""
        found = ((token, child) for token, child in self.children.items() if not child.ids)
        return tuple((token, child.number) for token, child in found if child.number is not None)

    @cached_property
    def goes_on(self) -> tuple[tuple[int, "Node"], ...]:
        """Next tokens after which a number may go on, each with its node."""
        return tuple((token, child) for token, child in self.children.items() if child.ids)


@dataclass(frozen=True)
class Distribution:
    """The judge's probabilities of the integers at one position; what is missing to 1 is no number."""

    mass_N: tuple[float, ...]  # N: the number

    @property
    def mass(self) -> float:
        """Probability that a number stands there."""
        return sum(self.mass_N)

    @property
    def expectation(self) -> float:
        """Mean number, given that a number stands there."""
        return sum(n * p for n, p in zip(NUMBERS, self.mass_N, strict=True)) / self.mass


def number_tree(tokenizer: Any) -> Node:
    """The tree of a tokenizer, its root at the place where the number begins."""
    root = Node(())
    spelled = {n: tuple(tokenizer.encode(str(n), add_special_tokens=False)) for n in NUMBERS}
    digits = _digit_tokens(tokenizer)
    for n, path in spelled.items():
        node = root
        for depth, token in enumerate(path, start=1):
            node = node.children.setdefault(token, Node(path[:depth]))
        node.number = n
        if n:  # a number that begins with 0 has ended
            node.digits = _continuations(tokenizer, n, path, digits)
    return root


def _digit_tokens(tokenizer: Any) -> dict[str, int]:
    """Every token of digits alone, the shortest first, as many as one request scores."""
    found = {text: i for text, i in tokenizer.get_vocab().items() if text.isascii() and text.isdigit()}
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0]))[:CANDIDATES])


def _continuations(tokenizer: Any, n: int, path: Path, digits: dict[str, int]) -> tuple[int, ...]:
    """Digit tokens with which a longer number begins that the tokenizer spells with `path` first."""
    longer = {token: tokenizer.encode(f"{n}{text}", add_special_tokens=False) for text, token in digits.items()}
    return tuple(token for token, ids in longer.items() if tuple(ids[: len(path) + 1]) == (*path, token))


async def distributions(
    ask: Ask, prompts: Sequence[list[int]], root: Node, expand_mass: float, overflow_mass: float
) -> list[Distribution]:
    """The number distribution after each prompt, level by level.

    `ask` gives log-probabilities of candidate next tokens. A node from which other numbers go on is asked where it
    holds more than `expand_mass`; one whose digits could only leave 0..100 ("73" to "731") from `overflow_mass` on,
    else it counts as ended, an error of at most its mass times the probability of a further digit.
    """
    mass_PN = [[0.0] * len(NUMBERS) for _ in prompts]
    frontier = [(i, root, 1.0) for i in range(len(prompts))]
    while frontier:
        wanted = sorted(set().union(*{node.path: node.ids for _, node, _ in frontier}.values()))
        found = await ask([[*prompts[i], *node.path] for i, node, _ in frontier], wanted)
        further = []
        for (i, node, mass), logprobs in zip(frontier, found, strict=True):
            mass_N = mass_PN[i]
            if node.number is not None:
                mass_N[node.number] += mass * max(0.0, 1.0 - sum(exp(logprobs[token]) for token in node.ids))
            for token, number in node.ends:
                mass_N[number] += mass * exp(logprobs[token])
            for token, child in node.goes_on:
                reached = mass * exp(logprobs[token])
                if reached > (expand_mass if child.children else overflow_mass):
                    further.append((i, child, reached))
                elif child.number is not None:
                    mass_N[child.number] += reached
        frontier = further
    return [Distribution(tuple(mass_N)) for mass_N in mass_PN]
