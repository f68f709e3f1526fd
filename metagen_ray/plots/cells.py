"""Truth and predictions of single cells, side by side: what the cell pictures are drawn from. Draws nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from metagen_ray.analysis.tables import DIAGONAL, CellRow
from metagen_ray.view.names import TRUTH

Place = tuple[str, str, int]


@dataclass(frozen=True)
class CellTable:
    """Propensities by predictor and (train domain, eval domain, coordinate); cells without a score are absent."""

    rows: Sequence[CellRow]

    @cached_property
    def values(self) -> Mapping[str, Mapping[Place, float]]:
        """Propensity of every scored cell, by predictor."""
        found: dict[str, dict[Place, float]] = {}
        for row in self.rows:
            if row.propensity is not None:
                place = (row.train_domain, row.eval_domain, row.coordinate)
                found.setdefault(row.predictor, {})[place] = row.propensity
        return found

    @cached_property
    def quadrant_of(self) -> Mapping[tuple[str, str], str]:
        """Quadrant of every cell of the truth; i = j is apart."""
        return {
            (r.train_domain, r.eval_domain): DIAGONAL
            if r.train_domain == r.eval_domain
            else f"{r.train_half}-{r.eval_half}"
            for r in self.rows
            if r.predictor == TRUTH
        }

    @cached_property
    def halves(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Half of every training domain and of every eval domain."""
        truth = [r for r in self.rows if r.predictor == TRUTH]
        return {r.train_domain: r.train_half for r in truth}, {r.eval_domain: r.eval_half for r in truth}

    @property
    def coordinates(self) -> int:
        """How many coordinates a score has."""
        return 1 + max((r.coordinate for r in self.rows), default=0)

    def has(self, predictor: str) -> bool:
        """Whether the predictor has a cell."""
        return bool(self.values.get(predictor))

    def inside(self, predictor: str, quadrant: str) -> list[tuple[Place, float, float]]:
        """(place, truth, prediction) of the cells of a quadrant in which both have a score."""
        truth, own = self.values.get(TRUTH, {}), self.values.get(predictor, {})
        return [
            (place, truth[place], value)
            for place, value in own.items()
            if place in truth and self.quadrant_of[place[:2]] == quadrant
        ]
