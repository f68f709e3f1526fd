"""Whose turn it is: the weights an engine holds, when many ask for different ones. Knows no engine and no file.

An engine holds one set of weights at a time. Requests that want the ones it holds run side by side; the first that
wants others waits until those are done, has the weights changed, and goes on. Requests take turns in the order in which
they came, so neither side can starve the other.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

BASE = ""


class Resident:
    """The weights in the engine, by name; `load` changes them while nothing runs. Starts with the base."""

    def __init__(self, load: Callable[[str], Awaitable[None]]) -> None:
        self._load = load
        self._held: str | None = BASE  # None where a load has failed half-way
        self._users = 0
        self._door = asyncio.Lock()  # first come, first served
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def holding(self, name: str) -> AsyncIterator[None]:
        """The engine holds the weights `name` inside; raises what loading them raises."""
        async with self._door:
            if self._held != name:
                await self._change(name)
            self._users += 1
            self._idle.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()

    async def _change(self, name: str) -> None:
        await self._idle.wait()
        self._held = None
        await self._load(name)
        self._held = name
