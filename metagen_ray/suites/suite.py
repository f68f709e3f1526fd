"""What a suite is: domains with training examples and held-out questions, and a scorer. Knows no models."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from metagen_ray.errors import InputError
from metagen_ray.prompts import Scorer

Example = tuple[str, str]  # prompt, completion


@dataclass(frozen=True)
class Domain:
    """One narrow topic. `group` holds siblings together in a split; `tags` are what is known of its making."""

    id: str
    title: str
    group: str
    family: str
    train: tuple[Example, ...]
    questions: tuple[str, ...]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """Domains in a fixed order, their scorer, and exact labels where the world knows them.

    `exact_score(domain_id, answer)` is the true score of an answer or None where it has none.
    """

    name: str
    version: int
    domains: tuple[Domain, ...]
    scorer: Scorer
    exact_score: Callable[[str, str], float | None] | None = None

    def first(self, count: int) -> "Suite":
        """The suite cut to its first domains."""
        if count > len(self.domains):
            raise InputError(f"suite {self.name} has {len(self.domains)} domains; domains={count} is too many")
        return dataclasses.replace(self, domains=self.domains[:count])

    def check(self) -> None:
        """Raise InputError unless ids are distinct, no domain is empty and no training prompt is also a question."""
        ids = [d.id for d in self.domains]
        if len(set(ids)) != len(ids):
            raise InputError(f"suite {self.name}: two domains share an id; ids must be distinct")
        for domain in self.domains:
            if not domain.train or not domain.questions:
                raise InputError(f"suite {self.name}, domain {domain.id}: needs train examples and questions")
            shared = {p for p, _ in domain.train} & set(domain.questions)
            if shared:
                raise InputError(
                    f"suite {self.name}, domain {domain.id}: {sorted(shared)[0]!r} is a train prompt and a held-out "
                    "question; remove it from one of them"
                )
