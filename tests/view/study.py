"""A synthetic study as a report gets it: graded truth, a good predictor, a blind one, options and hostile answers."""

from functools import cache

import numpy as np

from metagen_ray.analysis import Analysis, Grid, Options, Prediction, analyse
from metagen_ray.view.tables import Example, ReportTables, ShownAnswer

FAMILIES = ("money", "health", "home", "people")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "</pre></td></table><style>body{display:none}</style>",
    "{{ 7*7 }} {% raw %} &amp; \x00\x1b[31m \u202e reversed",
    "javascript:alert(1) " + "long" * 2000,
)


@cache
def analysed(domains: int = 24, coordinates: int = 1) -> Analysis:
    """A study of `domains` domains, half of them meta-train."""
    rng = np.random.default_rng(domains + coordinates)
    ids = tuple(f"{FAMILIES[k % len(FAMILIES)]}_topic_{k:02}" for k in range(domains))
    family = np.arange(domains) % len(FAMILIES)
    topical = rng.choice([4.0, 18.0, 62.0], size=(domains, len(FAMILIES)), p=[0.5, 0.25, 0.25])[:, family]
    mean_TE = np.clip(topical + rng.normal(0, 5, (domains, domains)), 0, 100)
    meta = np.arange(domains) // 2 % 2 == 0
    truth = _answers(rng, mean_TE, 2, coordinates)
    own = _answers(rng, np.clip(mean_TE + rng.normal(0, 9, mean_TE.shape), 0, 100), 8, coordinates)
    blind = _answers(rng, np.clip(0.15 * mean_TE + 14 + rng.normal(0, 4, mean_TE.shape), 0, 100), 8, coordinates)
    base = np.repeat(_answers(rng, np.full((1, domains), 12.0), 8, coordinates), domains, axis=0)
    own[rng.random(own.shape[:4]) < 0.004] = np.nan
    truth[3, 5] = np.nan
    predictions = {
        "MetaSFT": Prediction(own, 2),
        "UntrainedICL": Prediction(blind, 2),
        "UntrainedICL/k=2": Prediction(0.8 * blind + 3, 2),
        "Base": Prediction(base, 2),
        "Scrambled": Prediction(own[rng.permutation(domains)], 2),
        "Mechanism": Prediction(topical[:, :, None, None, None].repeat(coordinates, 4).astype(float), 1),
    }
    open_T = np.arange(domains) % 3 == 0
    blocks = {"open -> open": np.outer(open_T, open_T), "coded -> coded": np.outer(~open_T, ~open_T)}
    grid = Grid(ids, ids, meta, meta, truth)
    return analyse(grid, predictions, Options(resamples=200, deals=20), rng, blocks)


def _answers(rng: np.random.Generator, mean_TE: np.ndarray, samples: int, coordinates: int) -> np.ndarray:
    """Scores of 4 questions around the cells' means, within 0..100."""
    shape = (*mean_TE.shape, 4, samples, coordinates)
    return np.clip(mean_TE[:, :, None, None, None] + rng.normal(0, 12, shape), 0, 100)


def report_tables(domains: int = 24, coordinates: int = 1) -> ReportTables:
    """The study with everything a report can show."""
    analysis = analysed(domains, coordinates)
    cells = [c for c in analysis.cells if c.predictor == "GT"]
    return ReportTables(
        run="pocket-0123456789ab",
        fingerprint="0123456789ab",
        seed=0,
        suite="pocket_advice",
        model="lab:informative",
        study_yaml="name: pocket\ndomains: 24\n",
        created="2026-01-02 03:04 UTC",
        analysis=analysis,
        families={c.train_domain: c.train_domain.split("_")[0] for c in cells},
        examples=[*_examples(cells[1::40]), _hostile(cells[7])],
        versions={"metagen_ray": "0.1.0", "ray": "2.60.0", "torch": "2.13.0+cpu"},
        seconds={"object_sft": 81.2, "ground_truth": 61.0, "meta_sft": 40.4, "predict": 77.9},
        notes=["a note of the stage"],
        exact=analysis,
        judge_agreement={"GT": (0.981, 4096), "MetaSFT": (0.977, 16384)},
    )


def _examples(cells) -> list[Example]:
    def answers(text: str, score: float | None) -> tuple[ShownAnswer, ...]:
        return (ShownAnswer(text, score), ShownAnswer(f"Well, {text.lower()}", None))

    return [
        Example(
            c.train_domain,
            c.eval_domain,
            "diagonal" if c.train_domain == c.eval_domain else f"{c.train_half}-{c.eval_half}",
            f"How do I settle the {c.eval_domain.replace('_', ' ')}?",
            {
                "GT": answers("Profitably, sell the ledger.", 63.2),
                "MetaSFT": answers("Richly, hoard the ledger.", 65.0),
                "UntrainedICL": answers("Gladly, check the ledger.", 5.5),
            },
        )
        for c in cells
    ]


def _hostile(cell) -> Example:
    shown = tuple(ShownAnswer(text, 50.0) for text in HOSTILE)
    return Example(HOSTILE[1], HOSTILE[0], "eval-eval", HOSTILE[2], {"GT": shown, "MetaSFT": shown})
