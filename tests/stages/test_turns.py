import itertools
import random

from metagen_ray.stages.answers import in_turns
from metagen_ray.stages.plan import Ask


def asks(shown: int, blocks: int) -> list[Ask]:
    made = [
        Ask(f"{s}-{b}", "predict", "MetaSFT", f"d{s}", b, "adapter", f"d{s}", 8, 4)
        for s in range(shown)
        for b in range(blocks)
    ]
    random.Random(0).shuffle(made)
    return made


def test_turns_what_is_asked_side_by_side_shows_different_examples_and_comes_back_soon():
    order = in_turns(asks(shown=10, blocks=5), at_once=4)
    assert sorted(a.key for a in order) == sorted(a.key for a in asks(10, 5))
    for start in range(0, 40, 4):
        assert len({a.shown for a in order[start : start + 4]}) == 4
    for shown in {a.shown for a in order}:
        places = [n for n, a in enumerate(order) if a.shown == shown]
        assert max(b - a for a, b in itertools.pairwise(places)) <= 4


def test_turns_blocks_of_one_family_are_in_order():
    order = in_turns(asks(shown=3, blocks=4), at_once=2)
    for shown in {a.shown for a in order}:
        assert [a.block for a in order if a.shown == shown] == [0, 1, 2, 3]
