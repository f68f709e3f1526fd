import asyncio
from collections.abc import Awaitable, Callable

import pytest

from metagen_ray.serving.weights import BASE, Resident


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 10))


def test_weights_those_of_one_name_are_used_together_and_loaded_once():
    async def work() -> None:
        loads, inside, most = [], 0, 0
        resident = Resident(lambda name: _append(loads, name))

        async def use() -> None:
            nonlocal inside, most
            async with resident.holding("a"):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(use() for _ in range(8)))
        assert loads == ["a"] and most > 1

    run(work)


def test_weights_are_never_changed_under_a_request_and_turns_are_in_order():
    async def work() -> None:
        used: list[str] = []
        inside: list[str] = []

        async def load(name: str) -> None:
            assert not inside
            await asyncio.sleep(0)
            assert not inside

        resident = Resident(load)

        async def use(name: str) -> None:
            async with resident.holding(name):
                inside.append(name)
                assert set(inside) == {name}
                used.append(name)
                await asyncio.sleep(0.001)
                inside.remove(name)

        order = [BASE, BASE, "a", BASE, "b", "b", "a", BASE]
        await asyncio.gather(*map(use, order))
        assert used == order

    run(work)


def test_weights_a_load_that_fails_is_told_to_its_asker_alone_and_tried_again():
    async def work() -> None:
        fails = iter([True, False, False])
        loads: list[str] = []

        async def load(name: str) -> None:
            loads.append(name)
            if next(fails):
                raise OSError("gone")

        resident = Resident(load)
        with pytest.raises(OSError, match="gone"):
            async with resident.holding("a"):
                raise AssertionError("nothing holds weights that were not loaded")
        async with resident.holding(BASE):  # what the engine holds is not known any more
            pass
        async with resident.holding("a"):
            pass
        assert loads == ["a", BASE, "a"]

    run(work)


def test_weights_a_request_that_is_cancelled_frees_its_turn():
    async def work() -> None:
        resident = Resident(lambda name: asyncio.sleep(0))

        async def hold(name: str) -> None:
            async with resident.holding(name):
                await asyncio.sleep(60)

        first = asyncio.ensure_future(hold(BASE))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(hold("a"))
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        async with resident.holding("b"):
            pass

    run(work)


async def _append(to: list[str], name: str) -> None:
    to.append(name)
