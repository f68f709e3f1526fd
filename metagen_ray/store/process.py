"""Whether a process that wrote its name is certainly gone. Linux's /proc; elsewhere nothing is ever certain.

A process id alone says little: ids are used again, other machines and containers have the same ones. So a name holds
the boot, the namespace of ids and the tick at which the process started.
"""

import os
import re
from pathlib import Path

PROC = Path("/proc")
_NAME = re.compile(r"(?P<place>\S+ pid:\[\d+\]) (?P<pid>\d{1,10}) \d+")
_STATE, _STARTED = 0, 19  # fields of /proc/ID/stat behind the command's closing bracket


def process_name(pid: int) -> str:
    """A name no other process has or will have, "" where the system gives none or there is no such process."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        fields = (PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()
        place = f"{boot} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        return ""
    return f"{place} {pid}" if fields[_STATE] in "ZX" else f"{place} {pid} {fields[_STARTED]}"


def is_gone(name: str) -> bool:
    """Whether the process of that name ran where we run and runs no more."""
    found, own = (_NAME.fullmatch(text) for text in (name, process_name(os.getpid())))
    if found is None or own is None or found["place"] != own["place"]:
        return False
    return process_name(int(found["pid"])) != name
