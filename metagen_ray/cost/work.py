"""What a model has to do in one unit of a study, counted in tokens. Owns the counting; knows no model and no GPU.

A token that is read attends to everything before it in its own row. Shared prefixes are read once: by the trees of a
training step, and by the prefix cache of a replica. All counts are of whole tokens; a cache keeps whole blocks of 16,
so up to 15 tokens a prompt are read again, which is left to the utilisation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reads:
    """Tokens read, (reader, read) pairs of attention, positions whose logits are computed."""

    tokens: float = 0
    pairs: float = 0
    logits: float = 0

    def __add__(self, other: "Reads") -> "Reads":
        return Reads(self.tokens + other.tokens, self.pairs + other.pairs, self.logits + other.logits)

    def times(self, factor: float) -> "Reads":
        """Every count times a factor."""
        return Reads(self.tokens * factor, self.pairs * factor, self.logits * factor)


@dataclass(frozen=True, slots=True)
class Work:
    """What is done: read and trained on, read before answering, and written token by token.

    `updates` are optimizer steps of one adapter, `unshared` the tokens that would be trained and read if no prefix were
    shared, `answers` the answers sampled or graded and `sampled` the tokens of those that were sampled.
    """

    trained: Reads = Reads()
    read: Reads = Reads()
    written: Reads = Reads()
    updates: float = 0
    unshared: float = 0
    answers: float = 0
    sampled: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.trained + other.trained,
            self.read + other.read,
            self.written + other.written,
            self.updates + other.updates,
            self.unshared + other.unshared,
            self.answers + other.answers,
            self.sampled + other.sampled,
        )

    @property
    def tokens(self) -> float:
        """Every token that passes through the model, once."""
        return self.trained.tokens + self.read.tokens + self.written.tokens


def straight(tokens: float, before: float = 0, logits: float = 0) -> Reads:
    """A run of tokens that follows `before` others and attends to them and to itself."""
    return Reads(tokens, tokens * before + tokens * (tokens + 1) / 2, logits)


def tree_reads(prefix: int, branches: Iterable[tuple[Sequence[int], int]]) -> Reads:
    """A training tree: its prefix once, each distinct prompt (token ids) once, then completions (their lengths)."""
    found, seen = straight(prefix), set()
    for prompt, completion in branches:
        key = tuple(prompt)
        if key not in seen:
            seen.add(key)
            found += straight(len(key), prefix)
        found += straight(completion - 1, prefix + len(key), completion)
    return found


def row_tokens(prefix: int, branches: Iterable[tuple[Sequence[int], int]]) -> int:
    """Tokens of the same tree as rows of their own, each with the prefix."""
    return sum(prefix + len(prompt) + completion - 1 for prompt, completion in branches)


@dataclass(frozen=True, slots=True)
class Group:
    """Questions asked under one prefix: how many, the sum of their tokens and of their tokens squared."""

    prefix: int
    questions: int
    tokens: float
    squares: float


def group(prefix: int, questions: Iterable[int]) -> Group:
    """The group of questions with these lengths under a prefix of so many tokens."""
    lengths = list(questions)
    return Group(prefix, len(lengths), sum(lengths), sum(n * n for n in lengths))


def asking(groups: Iterable[Group], samples: int, answer_tokens: float, reads_prefix: bool = True) -> Work:
    """Questions asked under their prefixes and answered `samples` times with `answer_tokens` each, their end included.

    Samples share the reading of their prompt. Without `reads_prefix` the prefixes lie in the cache already.
    """
    found, more = Work(), max(answer_tokens - 1, 0)  # the last token is written and never read
    for g in groups:
        read = Reads(g.tokens, g.prefix * g.tokens + (g.squares + g.tokens) / 2, g.questions)
        if reads_prefix:
            read += straight(g.prefix)
        per_sample = Reads(
            more * g.questions,
            more * (g.prefix * g.questions + g.tokens) + g.questions * more * (more + 1) / 2,
            more * g.questions,
        )
        answers = samples * g.questions
        found += Work(
            read=read,
            written=per_sample.times(samples),
            unshared=g.questions * g.prefix + g.tokens,
            answers=answers,
            sampled=answers * answer_tokens,
        )
    return found


@dataclass(frozen=True, slots=True)
class Rubric:
    """Tokens of a judge's prompt: what all prompts begin with, what follows an answer, and the number tree's places.

    `places` holds the depths at which the tree of numbers is asked further; empty where every number is one token.
    """

    head: int
    tail: int
    places: tuple[int, ...] = ()


def judging(rubric: Rubric, question: int, answers: float, answer_tokens: float) -> Work:
    """Grading the answers to one question, whose `question` tokens are read once after the rubric's head."""
    before = rubric.head + question
    own = answer_tokens + rubric.tail
    read = straight(question, rubric.head) + straight(own, before, 1).times(answers)
    for depth in rubric.places:
        read += straight(depth, before + own, 1).times(answers)
    unshared = answers * (before + own + sum(before + own + depth for depth in rubric.places))
    return Work(read=read, unshared=unshared)
