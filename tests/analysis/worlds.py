"""Small grids with known structure, for the tests of the analysis."""

import numpy as np

from metagen_ray.analysis import Grid, Prediction


def names(count, start=0):
    return tuple(f"d{k:03}" for k in range(start, start + count))


def world(rng, domains=6, questions=4, samples=3, coordinates=1, missing=0.0, extra=0):
    """A grid with row, column and cell effects; `extra` eval domains that nobody was trained on."""
    train, evals = names(domains), names(domains + extra)
    meta = np.arange(domains + extra) % 2 == 0
    mean = 50 + effects(rng, len(train), len(evals), coordinates)
    truth = answers(rng, mean, questions, samples)
    truth[rng.random(truth.shape[:4]) < missing] = np.nan
    return Grid(train, evals, meta[:domains], meta, truth), mean


def effects(rng, rows, columns, coordinates=1, row=8.0, column=8.0, cell=8.0):
    """Row, column and cell effects with the given standard deviations."""
    size = (coordinates,)
    return (
        row * rng.normal(size=(rows, 1, *size))
        + column * rng.normal(size=(1, columns, *size))
        + cell * rng.normal(size=(rows, columns, *size))
    )


def answers(rng, mean_TEO, questions, samples, between=6.0, within=10.0):
    """Scores of single answers around the cells' means."""
    t, e, o = mean_TEO.shape
    question = between * rng.normal(size=(t, e, questions, 1, o))
    return mean_TEO[:, :, None, None, :] + question + within * rng.normal(size=(t, e, questions, samples, o))


def prediction(rng, mean_TEO, questions=4, samples=6, sampled_n=3, off=4.0, missing=0.0):
    """Answers of a predictor whose idea of each cell is off by `off`."""
    score = answers(rng, mean_TEO + off * rng.normal(size=mean_TEO.shape), questions, samples)
    score[rng.random(score.shape[:4]) < missing] = np.nan
    return Prediction(score, sampled_n)
