"""An object in a warm process of its own, called from here. Knows nothing of what it holds.

A peer shares no library state with ours: TRL, for one, wraps its model for data-parallel training wherever something in
its process has started torch.distributed, as DeepSpeed does.
"""

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

from benchmarks.measure import settle

STARTED_WITH = dict(os.environ)  # before engines of ours put their own settings there


class Apart:
    """Calls an object that `make(*arguments)` has built in another process; a call returns when the work is done."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, STARTED_WITH, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()

    def call(self, method: str, *arguments: Any) -> Any:
        """The method's result. RuntimeError with its traceback where it fails there."""
        self._pipe.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the peer's process ended with {self._process.exitcode}") from None
        if failed:
            raise RuntimeError(f"the peer failed:\n{answer}")
        return answer


def _serve(pipe: Connection, environment: dict[str, str], make: Callable[..., Any], arguments: tuple) -> None:
    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter("ignore", FutureWarning)
    held = None

    def build() -> None:
        nonlocal held
        held = make(*arguments)

    _answer(pipe, build)
    while held is not None:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        _answer(pipe, getattr(held, method), *given)


def _answer(pipe: Connection, work: Callable[..., Any], *given: Any) -> None:
    try:
        result = work(*given)
        settle()
    except Exception:  # noqa: BLE001  # whatever it was goes to the caller
        pipe.send((True, traceback.format_exc()))
    else:
        pipe.send((False, result))
