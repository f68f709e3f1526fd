"""The app as a Kubernetes RayService or `serve run` brings it up: `metagen_ray.serving.standing:app` and plain values.

A study deploys through `app.py`. Owns the reading of the values; what they mean stands at `ServingSpec`.
"""

import dataclasses
import os
from typing import Any

from ray import serve

from metagen_ray.errors import InputError
from metagen_ray.serving.app import ServingSpec, build
from metagen_ray.serving.auth import default_token_file


def app(values: dict[str, Any]) -> serve.Application:
    """The app of a ServingSpec, whose store is METAGEN_STORE where the values name none.

    InputError for values that are no spec.
    """
    return build(spec(values), str(default_token_file()))


def spec(values: dict[str, Any]) -> ServingSpec:
    """The values, checked by name."""
    given = {"store": os.environ.get("METAGEN_STORE"), **values}
    fields = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(ServingSpec)}
    wrong = set(given) - set(fields) | {name for name, needed in fields.items() if needed and not given.get(name)}
    if wrong:
        raise InputError(f"serving: unknown or missing {', '.join(sorted(wrong))}; known are {', '.join(fields)}")
    return ServingSpec(**given)
