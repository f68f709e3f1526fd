"""The cluster of cluster/local.sh in a `with`, and what may be asked of its nodes from outside."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.disk import disk

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "local.sh"
JOBS_PORT = 8265
SHELLS = ("/bin/sh", "/bin/bash", "bash", "sh")  # Ray starts a job through one


def missing() -> str:
    """Why no such cluster can stand here; "" where it can."""
    tools = [tool for tool in ("ip", "unshare") if shutil.which(tool) is None]
    if tools:
        return f"{', '.join(tools)} not installed"
    return "" if os.geteuid() == 0 else "network namespaces need root"


class LocalCluster:
    """A head and workers, each with its own address, host name and /tmp; `out` is a machine outside of it."""

    def __init__(
        self,
        workers: int = 2,
        cpus: float = 1,
        store_mib: int | None = None,
        env: Mapping[str, str] = {},  # only read
    ) -> None:
        self.name = f"t{os.getpid() % 1000}"
        self.net = f"10.{100 + os.getpid() % 100}.7"
        self.room = Path(f"/var/tmp/metagen-local-{self.name}")
        self.store = Path(f"/var/tmp/metagen-store-{self.name}")  # the disk that all nodes share
        self.head = f"http://{self.net}.10:{JOBS_PORT}"
        self._size, self._store_mib = (str(workers), str(cpus)), store_mib
        self.workers = [f"w{n}" for n in range(1, workers + 1)]
        self._env = {
            **os.environ,
            **env,
            "METAGEN_LOCAL": self.name,
            "METAGEN_LOCAL_NET": self.net,
            "METAGEN_BIN": str(Path(sys.executable).parent),
        }

    def __enter__(self) -> Self:
        with ExitStack() as ends:  # also what is half up: it would work on beside all that follows
            ends.callback(shutil.rmtree, self.store, ignore_errors=True)
            if self._store_mib is not None:
                ends.enter_context(disk(self.store, self._store_mib))
            ends.callback(self._do, "down")
            self._do("up", *self._size)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    @property
    def token(self) -> str:
        """The cluster's token."""
        return (self.room / "token").read_text()

    def address(self, node: str) -> str:
        """The address of w1, w2, ..."""
        return f"{self.net}.{10 + int(node[1:])}"

    def start(self, node: str, *command: str, log: Path | None = None) -> subprocess.Popen:
        """A command on a node; it is the process that is returned."""
        with open(log or os.devnull, "ab") as out:
            return subprocess.Popen(
                [str(SCRIPT), "run", node, *command], env=self._env, cwd="/", stdout=out, stderr=out
            )

    def run(self, node: str, *command: str, limit_s: float = 120) -> subprocess.CompletedProcess:
        """A command on a node to its end."""
        whole = [str(SCRIPT), "run", node, *command]
        return subprocess.run(whole, env=self._env, cwd="/", capture_output=True, text=True, timeout=limit_s)

    def kill(self, node: str) -> None:
        """Cut a node's power."""
        self._do("kill", node)

    def restart(self, node: str) -> None:
        """Start a node that was killed."""
        self._do("start", node)

    def wait_up(self, count: int) -> None:
        """Return once so many nodes are alive."""
        self._do("wait", str(count))

    def pids(self, node: str) -> list[int]:
        """Every process of a node."""
        found = subprocess.run(["ip", "netns", "pids", f"{self.name}-{node}"], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def link(self, node: str, state: str) -> None:
        """Plug a node's network `up` or `down`."""
        self._do("link", node, state)

    def processes(self, title: str, nodes: Sequence[str] = ()) -> list[int]:
        """Processes whose command has this in it, on these nodes, by default on all of the cluster's."""
        found = []
        for pid in itertools.chain.from_iterable(map(self.pids, nodes or ["head", *self.workers])):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has ended
                continue
            if title in command and not command.startswith(SHELLS):
                found.append(pid)
        return sorted(found)

    def logs(self) -> list[Path]:
        """Every log that Ray and our processes have written on the nodes."""
        return [p for p in self.room.rglob("*") if p.is_file() and ("logs" in p.parts or p.suffix == ".log")]

    def _do(self, *arguments: str) -> None:
        done = subprocess.run([str(SCRIPT), *arguments], env=self._env, capture_output=True, text=True, timeout=600)
        if done.returncode:
            logs = "".join(f"\n{log.name}: {log.read_text()[-1000:]}" for log in sorted(self.room.glob("*.log")))
            raise AssertionError(f"local.sh {' '.join(arguments)}: {done.stdout}{done.stderr}{logs}")
