"""Shards that fail: tried again, given up one by one, and never where the fault is not theirs."""

import pytest

from metagen_ray.errors import ShardsFailed
from metagen_ray.stages import patience
from metagen_ray.stages.plan import AdapterShard


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(patience, "BACKOFF_S", 0.0)


def tried(fails_until: dict[str, int], keys: str = "abcdefgh", whole: int = 8):
    """What was given up of shards that fail in so many attempts, and what each attempt did."""
    attempts: list[list[str]] = []

    def work(left) -> None:
        attempts.append([shard.key for shard in left])
        failed = {s.key: "broken" for s in left if len(attempts) <= fails_until.get(s.key, 0)}
        if failed:
            raise ShardsFailed("answers, shards", failed, len(left))

    shards = [AdapterShard(key, "domain", 0) for key in keys]
    return patience.patiently("run-1", "ground_truth", shards, whole, work), attempts


def test_patience_tries_what_failed_again_and_nothing_else():
    lost, attempts = tried({"b": 1, "c": 2})
    assert attempts == [[*"abcdefgh"], ["b", "c"], ["c"]] and not lost


def test_patience_gives_up_what_fails_three_times_and_names_it():
    lost, attempts = tried({"b": 99, "c": 1})
    assert attempts[1:] == [["b", "c"], ["b"]] and lost == {"b": "broken"}


def test_patience_ends_at_once_where_most_of_a_pass_fails():
    with pytest.raises(ShardsFailed) as failed:
        tried(dict.fromkeys("abcde", 99))
    assert failed.value.exit_code == 5


@pytest.mark.parametrize("keys", ["abcdefgh", "abcde", "a"])
def test_patience_gives_up_a_few_of_a_large_pass_also_where_nothing_else_is_missing(keys: str):
    """One bad adapter fails all its blocks, and in a run that is repeated they are all there is to do."""
    broken = keys[:5]
    lost, attempts = tried(dict.fromkeys(broken, 99), keys, whole=600)
    assert set(lost) == set(broken) and len(attempts) == 3
