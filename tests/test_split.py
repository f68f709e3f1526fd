"""The split: siblings stay together, halves do not depend on order, bad shares are refused."""

import pytest

from metagen_ray.errors import InputError
from metagen_ray.split import halves
from metagen_ray.study import Split


def groups_of(count: int) -> dict[str, str]:
    return {f"d{i}": f"g{i // 2}" for i in range(count)}


def test_halves_siblings_share_a_half():
    found = halves(groups_of(40), Split(), seed=3)
    for half in (found.meta_train, found.meta_eval):
        names = set(half)
        assert all(f"d{int(n[1:]) ^ 1}" in names for n in names)
    assert len(found.meta_train) == len(found.meta_eval) == 20


def test_halves_do_not_depend_on_order():
    groups = groups_of(40)
    backwards = dict(reversed(groups.items()))
    assert set(halves(groups, Split(), 1).meta_eval) == set(halves(backwards, Split(), 1).meta_eval)


def test_halves_seeds_differ():
    assert len({halves(groups_of(40), Split(), s).meta_eval for s in range(5)}) == 5


def test_halves_inner_never_touches_the_eval_half():
    real = halves(groups_of(40), Split(), 1)
    inner = halves(groups_of(40), Split(evaluate="inner"), 1)
    assert set(inner.unused) == set(real.meta_eval)
    assert set(inner.meta_train) | set(inner.meta_eval) == set(real.meta_train)
    assert len(inner.meta_eval) == 4


@pytest.mark.parametrize(("count", "split"), [(3, Split()), (4, Split(eval_share=0.01)), (4, Split(eval_share=0.99))])
def test_halves_too_small_or_empty_is_refused(count, split):
    with pytest.raises(InputError, match="domains"):
        halves({f"d{i}": f"d{i}" for i in range(count)}, split, 0)
