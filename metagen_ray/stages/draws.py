"""k-draws: which training examples stand in a prompt. Owns their seeds; knows no tokens."""

import hashlib
import random
from collections.abc import Sequence

from metagen_ray.suites.suite import Domain, Example


def seeded(*parts: object) -> random.Random:
    """A generator whose seed derives from the parts, the same on every machine and in any order of work."""
    return random.Random(int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big"))


def k_draw(domain: Domain, k: int, *seed: object) -> list[Example]:
    """K distinct examples of a domain's training set, in random order."""
    return seeded(domain.id, k, *seed).sample(domain.train, k)


def draw_of_question(question: int, draws: int) -> int:
    """Questions are dealt over the draws."""
    return question % draws


def scrambled(ids: Sequence[str], seed: int) -> dict[str, str]:
    """For each training domain another one whose examples are shown in its place: a seeded cycle through all."""
    order = list(ids)
    seeded("scrambled", seed).shuffle(order)
    return dict(zip(order, [*order[1:], order[0]], strict=True))
