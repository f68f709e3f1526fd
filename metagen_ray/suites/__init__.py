"""Suites: sets of domains and the scorer that grades their answers."""

import difflib
from collections.abc import Callable

from metagen_ray.errors import InputError
from metagen_ray.suites import pocket_advice
from metagen_ray.suites.suite import Suite

SUITES: dict[str, Callable[[], Suite]] = {"pocket_advice": pocket_advice.build}


def load_suite(name: str, domains: int | None = None) -> Suite:
    """A shipped suite, or its first `domains` domains; checked. InputError names the nearest suite."""
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown suite {name!r}; shipped are {', '.join(SUITES)}{hint}")
    suite = SUITES[name]()
    if domains is not None:
        suite = suite.first(domains)
    suite.check()
    return suite
