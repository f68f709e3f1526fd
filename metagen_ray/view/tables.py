"""What a report is made of. Owns field names; writes and draws nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metagen_ray.analysis import Analysis


@dataclass(frozen=True)
class ShownAnswer:
    """One answer with its score in points of 0..100; None where the judge gave no number."""

    text: str
    score: float | None


@dataclass(frozen=True)
class Example:
    """One question of one cell with the answers to it, by predictor; the truth is `GT`."""

    train_domain: str
    eval_domain: str
    quadrant: str
    question: str
    answers: Mapping[str, Sequence[ShownAnswer]]


@dataclass(frozen=True)
class ReportTables:
    """One analysed study with all that a reader needs to place it.

    `families` maps a domain to its family; `seconds` a stage to what it took; `exact` is the same study scored by exact
    labels and `judge_agreement` the judge's Pearson with them and the number of answers, by predictor.
    """

    run: str
    fingerprint: str
    seed: int
    suite: str
    model: str
    study_yaml: str
    created: str
    analysis: Analysis
    families: Mapping[str, str] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    exact: Analysis | None = None
    judge_agreement: Mapping[str, tuple[float, int]] = field(default_factory=dict)
