"""Shards that fail: tried again, given up one by one, and never where the fault is not theirs."""

from types import SimpleNamespace

import pytest

from metagen_ray.errors import ShardsFailed
from metagen_ray.stages import driver


class Plan:
    """The two things that patience needs of a plan."""

    study = SimpleNamespace(run_name=lambda: "run-1")

    def __init__(self, given_up: frozenset[str] = frozenset()) -> None:
        self.given_up = given_up

    def without(self, keys) -> "Plan":
        return Plan(self.given_up | frozenset(keys))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(driver, "BACKOFF_S", 0.0)


def tried(fails_until: dict[str, int], total: int = 8, **more):
    """Shards a, b, c, ... that fail in so many attempts; the plan that is left, the ledger, what each attempt did."""
    ledger = SimpleNamespace(given_up={})
    attempts: list[list[str]] = []

    def work(left) -> None:
        attempts.append([shard.key for shard in left])
        failed = {s.key: "broken" for s in left if len(attempts) <= fails_until.get(s.key, 0)}
        if failed:
            raise ShardsFailed("answers, shards", failed, len(left))

    shards = [SimpleNamespace(key=key) for key in "abcdefgh"[:total]]
    left = driver._patiently(Plan(), ledger, "ground_truth", shards, work, **more)
    return left, ledger, attempts


def test_patience_tries_what_failed_again_and_nothing_else():
    left, ledger, attempts = tried({"b": 1, "c": 2})
    assert attempts == [[*"abcdefgh"], ["b", "c"], ["c"]]
    assert not left.given_up and not ledger.given_up


def test_patience_gives_up_what_fails_three_times_and_names_it():
    left, ledger, attempts = tried({"b": 99, "c": 1})
    assert attempts[1:] == [["b", "c"], ["b"]]
    assert left.given_up == {"b"} and ledger.given_up == {("ground_truth", "b"): "broken"}


def test_patience_ends_at_once_where_most_fail():
    with pytest.raises(ShardsFailed) as failed:
        tried(dict.fromkeys("abcde", 99))
    assert failed.value.systemic and failed.value.exit_code == 5
    with pytest.raises(ShardsFailed):
        tried({"a": 99}, needed=True)


def test_patience_gives_up_a_single_shard_that_is_all_there_is():
    left, _, attempts = tried({"a": 99}, total=1)
    assert left.given_up == {"a"} and len(attempts) == 3
