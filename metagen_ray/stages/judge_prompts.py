"""How long a judge's prompts are and what they share. Grades nothing."""

from dataclasses import replace
from functools import cached_property, reduce
from itertools import takewhile

from metagen_ray.cost.work import Rubric, Work, judging
from metagen_ray.prompts import Scorer
from metagen_ray.serving.judge import judge_messages
from metagen_ray.serving.numbers import NUMBERS
from metagen_ray.stages.context import StudyContext, Tokens


class JudgePrompts:
    """Sizes of the prompts that grade a study's answers, one rubric after the other."""

    def __init__(self, context: StudyContext) -> None:
        self.context = context
        scorer = context.suite.scorer
        coherence = scorer.coherence_rubric
        self._scorers = [scorer] if coherence is None else [scorer, replace(scorer, rubric=coherence)]

    def grading(self, question: str, answers: float, answer_tokens: float) -> Work:
        """All rubrics put to the answers to one question; their common beginning is read elsewhere."""
        works = [judging(rubric, questions[question], answers, answer_tokens) for rubric, questions in self._sizes]
        return replace(sum(works, Work()), answers=answers)

    def beginnings(self) -> list[int]:
        """Tokens that all prompts of a rubric begin with, by rubric."""
        return [rubric.head for rubric, _ in self._sizes]

    @cached_property
    def _sizes(self) -> list[tuple[Rubric, dict[str, int]]]:
        """By rubric: its prompts' beginning and end, and what each question adds before an answer."""
        return [self._measure(scorer) for scorer in self._scorers]

    def _measure(self, scorer: Scorer) -> tuple[Rubric, dict[str, int]]:
        starts: dict[str, Tokens] = {}
        tail = 0
        for domain in self.context.suite.domains:
            for question in self.context.questions(domain):
                one, other = (
                    self.context.renderer.prompt(judge_messages(scorer, question, answer)) for answer in ("Yes", "No")
                )
                starts[question] = _shared(one, other)
                tail = len(_shared(one[::-1], other[::-1]))
        head = len(reduce(_shared, starts.values()))
        return Rubric(head, tail, self._places), {q: len(start) - head for q, start in starts.items()}

    @cached_property
    def _places(self) -> tuple[int, ...]:
        """Depths at which the tree of numbers is asked further: the beginnings that a longer number goes on from."""
        spelled = [self.context.tokenizer.encode(str(n), add_special_tokens=False) for n in NUMBERS]
        inner = {tuple(ids[:depth]) for ids in spelled for depth in range(1, len(ids))}
        return tuple(sorted(len(path) for path in inner))


def _shared(one: Tokens, other: Tokens) -> Tokens:
    """What both begin with."""
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]
