"""How predictors and quadrants are called, ordered and grouped wherever a person sees them. Draws nothing."""

from collections.abc import Iterable

from metagen_ray.analysis.tables import EVAL_EVAL, EVAL_TRAIN, TRAIN_EVAL, TRAIN_TRAIN

TRUTH, META, UNTRAINED = "GT", "MetaSFT", "UntrainedICL"
FLOORS = ("GT", "GT-same", "GT-seed")

# Evaluation first; the fit is shown last and never as evaluation.
SHOWN_QUADRANTS: tuple[str, ...] = (TRAIN_EVAL, EVAL_TRAIN, EVAL_EVAL, TRAIN_TRAIN)
QUADRANT_TITLES = {
    TRAIN_EVAL: "new questions",
    EVAL_TRAIN: "new dataset",
    EVAL_EVAL: "both new",
    TRAIN_TRAIN: "fit (not an evaluation)",
    "diagonal": "own domain",
}

_ORDER = (
    "MetaSFT",
    "UntrainedICL",
    "Base",
    "Scrambled",
    "Mechanism",
    "GT-Additive",
    "GT-EvalOnly/loo",
    "GT-EvalOnly/known",
    "GT-EvalOnly/one",
    "GT-EvalOnly/dealt",
    "GT-TrainOnly/loo",
    "GT-TrainOnly/known",
    "GT-TrainOnly/one",
    "GT-TrainOnly/dealt",
    *reversed(FLOORS),
)
FLOOR_TITLES = {
    "GT": "floor, new questions (GT)",
    "GT-same": "floor, same questions (GT-same)",
    "GT-seed": "second fine-tune (GT-seed)",
}


def in_order(predictors: Iterable[str]) -> list[str]:
    """Distinct predictors as they stand in every table and figure: ours, its rivals, baselines, floors."""
    return sorted(dict.fromkeys(predictors), key=_place)


def _place(predictor: str) -> tuple[int, str]:
    """Variants (`UntrainedICL/k=4`) follow their family; unknown ones stand before the baselines of the truth."""
    if predictor in _ORDER:
        return _ORDER.index(predictor), ""
    family = predictor.split("/")[0]
    known = family if family in _ORDER else "Mechanism"
    return _ORDER.index(known), predictor
