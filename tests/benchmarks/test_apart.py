import os

import pytest

from benchmarks.apart import Apart


class Counter:
    """Something that keeps a state in its own process."""

    def __init__(self, start: int) -> None:
        self.count = start

    def add(self, number: int) -> tuple[int, int]:
        self.count += number
        return self.count, os.getpid()

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def fail(self) -> None:
        raise KeyError("nothing there")


def test_object_apart_keeps_its_state_in_another_process() -> None:
    with Apart(Counter, 5) as counter:
        _, first = counter.call("add", 1)
        total, second = counter.call("add", 2)
    assert total == 8
    assert first == second != os.getpid()


def test_object_apart_starts_with_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with Apart(Counter, 0) as counter:
        assert counter.call("environment", "LOCAL_RANK") is None


def test_object_apart_tells_what_failed_and_goes_on() -> None:
    with Apart(Counter, 0) as counter:
        with pytest.raises(RuntimeError, match="nothing there"):
            counter.call("fail")
        assert counter.call("add", 1)[0] == 1
