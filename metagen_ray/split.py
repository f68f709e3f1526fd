"""Which half a domain falls into. Owns the split; knows nothing of models or answers.

Groups of siblings are ordered by a hash of (seed, group) and dealt, so a split does not depend on the order of domains.
"""

import hashlib
from dataclasses import dataclass

from metagen_ray.errors import InputError
from metagen_ray.study import Split

MIN_DOMAINS = 4


@dataclass(frozen=True)
class Halves:
    """Ids of the domains in each half; `unused` belong to neither (the eval half while recipes are chosen)."""

    meta_train: tuple[str, ...]
    meta_eval: tuple[str, ...]
    unused: tuple[str, ...] = ()


def halves(groups: dict[str, str], split: Split, seed: int) -> Halves:
    """Deal domains (id -> group) into halves.

    With `split.evaluate == "inner"` the inner part of meta-train is the eval half and the real eval half is unused.
    Raises InputError for fewer than 4 domains and for a split that leaves a half empty.
    """
    if len(groups) < MIN_DOMAINS:
        raise InputError(f"{len(groups)} domains: a study needs at least {MIN_DOMAINS}; raise `domains`")
    ordered = sorted(set(groups.values()), key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest())
    cut = round(len(ordered) * split.eval_share)
    evaluated, trained, unused = set(ordered[:cut]), set(ordered[cut:]), set()
    if split.evaluate == "inner":
        rest = ordered[cut:]
        inner = set(rest[: round(len(rest) * split.inner_share)])
        evaluated, trained, unused = inner, trained - inner, evaluated
    result = Halves(_ids(groups, trained), _ids(groups, evaluated), _ids(groups, unused))
    if not result.meta_train or not result.meta_eval:
        empty = "meta-train" if not result.meta_train else "meta-eval"
        raise InputError(
            f"the split leaves the {empty} half empty ({len(ordered)} groups, eval_share {split.eval_share}, "
            f"inner_share {split.inner_share}); change split.eval_share or use more domains"
        )
    return result


def _ids(groups: dict[str, str], chosen: set[str]) -> tuple[str, ...]:
    return tuple(i for i, group in groups.items() if group in chosen)
