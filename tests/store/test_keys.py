"""Content keys: equal for equal content, different for any other, refused for what JSON does not have."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metagen_ray.store import content_key

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_content_key_order_and_json_round_trip_do_not_count(parts: dict[str, Any]):
    backwards = dict(reversed(list(parts.items())))
    assert content_key(parts) == content_key(backwards) == content_key(json.loads(json.dumps(parts)))


def test_content_key_another_process_gives_the_same():
    parts = {"rate": 0.1, "rows": [1, "ä", None, True], "recipe": {"b": 1e-300, "a": -0.0}}
    code = f"from metagen_ray.store import content_key; print(content_key({parts!r}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == content_key(parts)


def test_content_key_neighbouring_values_differ():
    parts: list[Any] = [
        1,
        2,
        1.0,
        "1",
        True,
        None,
        [1],
        [[1]],
        {"x": 1},
        0.1,
        np.nextafter(0.1, 1),
        "",
        "None",
    ]
    assert len({content_key({"value": part}) for part in parts}) == len(parts)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), np.float64("nan")])
def test_content_key_number_without_value_is_refused_by_place(bad: float):
    with pytest.raises(ValueError, match=r"\['recipe'\]\[1\]"):
        content_key({"recipe": [0, bad]})


@pytest.mark.parametrize("bad", [b"x", {1}, object(), np.int64(1), np.zeros(2), {1: 2}, 1j])
def test_content_key_type_json_lacks_is_refused(bad: Any):
    with pytest.raises(TypeError, match="recipe"):
        content_key({"recipe": bad})
