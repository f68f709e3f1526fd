"""Several splits of one world, taken together: `combine`. Owns what is pooled over study seeds.

The same domains stand in other halves in every split, so one resample of domains serves all splits.
Shape suffixes: B resample, R training domain, C eval domain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metagen_ray.analysis import contrasts, measures
from metagen_ray.analysis.bootstrap import whole_weights
from metagen_ray.analysis.fields import Entry, Field
from metagen_ray.analysis.grid import Floats
from metagen_ray.analysis.measures import Key
from metagen_ray.analysis.quadrants import Analysis, Options, bounds, contrasts_of
from metagen_ray.analysis.tables import QUADRANTS, BlockRow, ClaimRow, ContrastRow, PooledBlockRow, PooledRow
from metagen_ray.errors import InputError


@dataclass(frozen=True, eq=False)
class Pooled:
    """The rows of several splits together; `contrasts` count the splits that the subject wins."""

    quadrants: list[PooledRow]
    contrasts: list[ContrastRow]
    claims: list[ClaimRow]
    blocks: list[PooledBlockRow]
    notes: list[str]


def combine(analyses: Sequence[Analysis], options: Options, rng: np.random.Generator) -> Pooled:
    """Pool splits: RMSE as root of the mean over splits of the mean square, any other metric as mean over splits.

    A metric without a value in one of the splits has none here. Raises InputError below two splits.
    """
    if len(analyses) < 2:
        raise InputError(f"{len(analyses)} analyses to combine; give at least 2 splits")
    rows = []
    for prefix in _shared(a.fields for a in analyses):
        splits = [a.fields[prefix] for a in analyses]
        draws = _draws([f for split in splits for f in split], options.resamples, rng)
        values = _split_values(analyses, prefix)
        for quadrant in QUADRANTS:
            fields = [next(f for f in split if f.region.quadrant == quadrant) for split in splits]
            rows += _pooled_rows(fields, values, draws, options, prefix)
    tests = contrasts_of([a.fields[""] for a in analyses], options)
    claims = contrasts.claims(tests, options.subject, options.rivals)
    return Pooled(rows, tests, claims, _block_rows(analyses), _notes(analyses))


Draws = tuple[Mapping[str, Floats], Mapping[str, Floats]]
Values = Sequence[Mapping[tuple[str, str, str], float | None]]


def _draws(fields: Sequence[Field], resamples: int, rng: np.random.Generator) -> Draws:
    """How often each resample draws each training and each eval domain, whatever its half; B each."""
    sides = []
    for ids in ({i for f in fields for i in f.row_ids}, {i for f in fields for i in f.col_ids}):
        ordered = sorted(ids)
        weight_BD = whole_weights(len(ordered), resamples, rng)
        sides.append(dict(zip(ordered, weight_BD.T, strict=True)))
    return sides[0], sides[1]


def _split_values(analyses: Sequence[Analysis], prefix: str) -> Values:
    """Point values of the single splits by predictor, quadrant and metric."""
    return [{(r.predictor, r.quadrant, r.metric): r.value for r in a.quadrants} for a in analyses]


def _pooled_rows(
    fields: Sequence[Field], values: Values, draws: Draws, options: Options, prefix: str
) -> list[PooledRow]:
    resampled = [measures.measure(field, *_weights(field, draws)) for field in fields]
    rows = []
    for entry in fields[0].entries:
        for metric in measures.metrics_of(entry):
            key = Key(entry.predictor, entry.form, metric)
            place = (
                entry.predictor,
                fields[0].region.quadrant,
                measures.metric_name(entry.form, metric, prefix),
            )
            own = [split.get(place) for split in values]
            drawn = [r[key] for r in resampled if key in r]
            rows.append(_pooled_row(place, metric, own, drawn, fields, entry, options))
    return rows


def _pooled_row(
    place: tuple[str, str, str],
    metric: str,
    own: Sequence[float | None],
    drawn: Sequence[Floats],
    fields: Sequence[Field],
    entry: Entry,
    options: Options,
) -> PooledRow:
    entries = [field.find(entry.predictor, entry.form) for field in fields]
    cells = sum(measures.counted_cells(e) for e in entries if e is not None)
    known = [value for value in own if value is not None]
    if len(known) < len(own):
        why = f"{len(own) - len(known)} of {len(own)} splits have no value"
        return PooledRow(*place, None, None, None, None, None, len(own), cells, entry.oracle, why)
    value = float(_pool(metric, np.array(known)[:, None])[0])
    value_B = _pool(metric, np.stack(drawn)) if len(drawn) == len(own) else None
    ends = (value, min(known), max(known))
    shortest = min(
        zip(entries, fields, strict=True),
        key=lambda pair: measures.clusters(pair[0] or entry, pair[1].region.crossed),
    )
    found = bounds(value_B, shortest[0] or entry, shortest[1], options)
    low, high, reason = (None, None, found) if isinstance(found, str) else (*found, None)
    return PooledRow(*place, ends[0], low, high, ends[1], ends[2], len(own), cells, entry.oracle, reason)


def _block_rows(analyses: Sequence[Analysis]) -> list[PooledBlockRow]:
    """Blocks by predictor, quadrant and metric over the splits in which they have a value."""
    found: dict[tuple[str, str, str, str], list[BlockRow]] = {}
    for row in (row for analysis in analyses for row in analysis.blocks if row.value is not None):
        found.setdefault((row.block, row.predictor, row.quadrant, row.metric), []).append(row)
    pooled = []
    for place, rows in found.items():
        known = np.array([row.value for row in rows])
        metric = place[-1].removesuffix("_expectation")
        ends = float(known.min()), float(known.max())
        pooled.append(PooledBlockRow(*place, float(_pool(metric, known)), *ends, len(rows), sum(r.cells for r in rows)))
    return pooled


def _pool(metric: str, value_SB: Floats) -> Floats:
    return np.sqrt(np.square(value_SB).mean(axis=0)) if metric == measures.RMSE else value_SB.mean(axis=0)


def _weights(field: Field, draws: Draws) -> tuple[Floats, Floats]:
    rows_BR = np.stack([draws[0][i] for i in field.row_ids], axis=1)
    if not field.region.crossed:
        return rows_BR, np.ones((len(rows_BR), 1))
    return rows_BR, np.stack([draws[1][j] for j in field.col_ids], axis=1)


def _shared(mappings) -> list[str]:
    first, *rest = [list(m) for m in mappings]
    return [key for key in first if all(key in other for other in rest)]


def _notes(analyses: Sequence[Analysis]) -> list[str]:
    names = [{entry.predictor for field in a.fields[""] for entry in field.entries} for a in analyses]
    uneven = sorted(set.union(*names) - set.intersection(*names))
    notes = [f"{len(analyses)} splits; intervals are over domains, `lowest` and `highest` show the spread over splits"]
    if uneven:
        notes.append(f"not in every split, so not pooled: {', '.join(uneven)}")
    return notes
