"""Simulated worlds in which the truth about the truth is known: levels and coverage.

Run as a script it prints the table of docs/statistics.md: `python -m tests.analysis.simulate`.
"""

import numpy as np

from metagen_ray.analysis.bootstrap import interval, whole_weights
from metagen_ray.analysis.contrasts import Differences, clustered_test
from metagen_ray.analysis.fields import Entry, Field, Region, squared_error
from metagen_ray.analysis.measures import Key, measure

# Standard deviations of row, column and cell effects of a predictor's errors.
MIXES = {
    "row, column and cell": (1.0, 1.0, 1.0),
    "row and column": (1.0, 1.0, 0.2),
    "row": (2.0, 0.0, 1.0),
    "cell alone": (0.0, 0.0, 1.0),
}


def errors(rng, rows, columns, mix, alike=0.0):
    """Errors of one predictor; `alike` correlates a domain's effect as training set and as questions."""
    row, column = rng.normal(size=(rows, 1)), rng.normal(size=(1, columns))
    if alike:
        column = alike * row[:columns].T + (1 - alike**2) ** 0.5 * column
    return mix[0] * row + mix[1] * column + mix[2] * rng.normal(size=(rows, columns))


def differences(rng, rows, columns, mix, alike=0.0, gap=0.0, diagonal=False):
    """Squared errors of two exchangeable predictors of one noisy truth; the second is worse by `gap` points^2."""
    shared = mix[2] * rng.normal(size=(rows, columns))
    first, second = (errors(rng, rows, columns, mix, alike) + shared for _ in range(2))
    value = np.square(first) - np.square(second) - gap
    if diagonal:
        value[np.arange(rows), np.arange(rows)] = np.nan
    ids = [f"d{k}" for k in range(rows)]
    return Differences(value, ids, ids[:columns] if diagonal else [f"e{k}" for k in range(columns)])


def rejections(rng, runs, rows, columns, mix, level=0.95, joint=False, **more):
    """Share of runs in which the contrast is significant."""
    tests = [clustered_test([differences(rng, rows, columns, mix, **more)], level, 8) for _ in range(runs)]
    p = np.array([test.p_joint if joint else test.p for test in tests], float)
    return float((p < 1 - level).mean())


def pooled_rejections(rng, runs, domains, splits, mix):
    """Two exchangeable predictors over several splits of one world: domain effects stay, halves change."""
    rejected = 0
    for _ in range(runs):
        whole = differences(rng, domains, domains, mix, diagonal=True)
        parts = []
        for _ in range(splits):
            half = np.sort(rng.permutation(domains)[: domains // 2])
            ids = [whole.row_ids[k] for k in half]
            # Half of a cell's difference is the split's own: the predictors are trained anew.
            fresh = differences(rng, len(half), len(half), mix, diagonal=True).value_RC
            parts.append(Differences(whole.value_RC[np.ix_(half, half)] + fresh, ids, ids))
        p = clustered_test(parts, 0.95, 8).p
        assert p is not None
        rejected += p < 0.05
    return rejected / runs


def simulated_field(rng, rows, columns, mix):
    """One predictor of one truth; both have row, column and cell effects, and share the truth's."""
    truth = 50 + 8 * errors(rng, rows, columns, mix)[..., None]
    score = truth + 5 * errors(rng, rows, columns, mix)[..., None]
    ids = tuple(str(k) for k in range(max(rows, columns)))
    region = Region("eval-eval", np.arange(rows), np.arange(columns), np.ones((rows, columns), bool), True)
    entry = Entry("P", "sampled", squared_error(score, truth), score)
    same = Entry("GT-same", "sampled", np.ones((rows, columns)))
    return Field(region, ids[:rows], ids[:columns], truth, (entry, same))


def true_values(mix):
    """What the metrics of `simulated_field` are for infinitely many domains."""
    row, column, cell = (s * s for s in mix)
    truth, error = 64.0, 25.0
    overlap = (truth / (truth + error)) ** 0.5
    return {
        "rmse": (error * (row + column + cell)) ** 0.5,
        "pearson": overlap,
        "pearson_column": overlap,
        "pearson_row": overlap,
        "pearson_double": overlap,
    }


def coverage(rng, runs, rows, columns, mix, resamples=400):
    """Share of runs whose 95 % interval holds the true value, per metric."""
    wanted, hits = true_values(mix), {}
    for _ in range(runs):
        field = simulated_field(rng, rows, columns, mix)
        drawn = measure(field, whole_weights(rows, resamples, rng), whole_weights(columns, resamples, rng))
        for metric, true in wanted.items():
            found = interval(drawn[Key("P", "sampled", metric)], 0.95, min(rows, columns))
            assert found is not None
            low, high = found
            hits.setdefault(metric, []).append(low <= true <= high)
    return {metric: float(np.mean(own)) for metric, own in hits.items()}


def main():
    rng = np.random.default_rng(0)
    for size in (8, 16, 50):
        for name, mix in MIXES.items():
            level = rejections(rng, 2000, size, size, mix, diagonal=True)
            print(f"level    {size:3} x {size:<3} {name:22} {level:.3f}", flush=True)
        alike = {"alike": 1.0, "diagonal": True}
        plain, joint = (rejections(rng, 2000, size, size, (1, 1, 1), joint=j, **alike) for j in (False, True))
        print(
            f"level    {size:3} x {size:<3} a domain's two effects equal: p {plain:.3f}, p_joint {joint:.3f}",
            flush=True,
        )
    for name, mix in MIXES.items():
        print(f"level    5 splits of 40  {name:22} {pooled_rejections(rng, 500, 40, 5, mix):.3f}", flush=True)
    for size in (8, 16, 50):
        for name, mix in MIXES.items():
            found = coverage(rng, 300, size, size, mix)
            print(f"coverage {size:3} x {size:<3} {name:22} {found}", flush=True)


if __name__ == "__main__":
    main()
