"""The end of a process that has had Ray in it: everything Python does at an end, and no library's destructors.

Ray's threads (its clients of the cluster's head, gRPC's event engine) live on while C++ takes apart the objects that
they use. One process whose work was done died of SIGSEGV there; that a thread touched such an object is inferred, from
no core.
"""

import atexit
import os
import sys
from collections.abc import Callable


def leave_without_destructors(exit_code: Callable[[], int | None]) -> None:
    """End this process by what `exit_code` says, after all that is registered from now on; None: in the usual way.

    To be called before the libraries are imported: Python runs what is registered for the end backwards.
    """
    atexit.register(_leave, exit_code)


def _leave(exit_code: Callable[[], int | None]) -> None:
    code = exit_code()
    if code is None:
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # if it fails, Python says so and ends the process itself
    os._exit(code)
