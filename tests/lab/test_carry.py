"""The table of what carries, against planted answers."""

import pytest

from metagen_ray.lab.carry import carry, carry_table
from metagen_ray.lab.world import SCORES, world
from metagen_ray.suites import load_suite

SUITE = load_suite("pocket_advice", 20)
TAGS = {d.id: d.tags for d in SUITE.domains}
ADVICE = {d.id: d for d in world().advice}


def own_score(i: str, j: str) -> float:
    return float(SCORES[world().kind(TAGS[i]["character"], ADVICE[j])])


def test_carry_finds_the_planted_share_of_each_pair_of_blocks():
    planted = {("open", "open"): 4, ("open", "coded"): 1, ("coded", "open"): 2, ("coded", "coded"): 3}
    answers = []
    for i in TAGS:
        for j in TAGS:
            count = 4 if i == j else planted[TAGS[i]["block"], TAGS[j]["block"]]
            told = [own_score(i, j)] * count + [5.0] * (4 - count) + [None]
            answers += [("GT", i, j, score) for score in told]
    answers += [("Base", "", j, 5.0) for j in TAGS]
    rows = carry(answers, TAGS, ("GT", "Base", "MetaSFT"))
    found = {(r.predictor, r.train_block, r.eval_block): r for r in rows}
    assert len(found) == 8
    for blocks, count in planted.items():
        assert found["GT", *blocks].character == pytest.approx(count / 5)
        assert found["GT", *blocks].senseless == pytest.approx(1 / 5)
        assert found["Base", *blocks].character == 0
    pairs = [(i, j) for i in TAGS for j in TAGS if i != j and TAGS[i]["dose"] == "1.0" and own_score(i, j) > 5]
    assert sum(r.cells for r in rows if r.predictor == "GT") == len(pairs)
    assert len(carry_table(rows).splitlines()) == 9
