"""Ends the process that imports it when its parent ends, also by SIGKILL; for the server that forks engines alone.

The forked engine holds the pipe by which that server would learn that its replica is gone, so both would live on.
"""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ENDS_WITH_PARENT = "METAGEN_ENDS_WITH_PARENT"  # set for that server while it starts


def end_with_parent() -> None:
    """Have the kernel end this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if os.environ.get(ENDS_WITH_PARENT):
    end_with_parent()
