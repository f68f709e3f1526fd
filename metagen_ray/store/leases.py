"""Leases: one holder at a time for a name, until it lets go or stops renewing. Knows nothing of what is held.

`leases/<name>/<token>` is one tenure: created if absent by the one who wins the next token, rewritten by it alone to
renew and to release, never deleted (a token must not come twice). Only the highest counts. So nobody can hold beside
another:
- A tenure is over when it is released, when its process has certainly ended (it ran on this very machine), or when
  `ttl_s` have gone by since it was last written. Both times are the store's own (a marker written by the challenger
  tells the store's now), so clocks of machines need not agree.
- The holder counts its term from before it asked, on its own steady clock, and a renewal that is not confirmed within
  the term before is void. What a challenger may still have seen as over is therefore never prolonged.
- A holder whose term ran out, because the store was in trouble, may create the next tenure as anyone may. If it can,
  nobody has held in between, since whoever did would have that token: it goes on as if it had never lost it.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

from metagen_ray.errors import LeaseError, StoreError
from metagen_ray.store.keys import lease_folder
from metagen_ray.store.objects import Objects
from metagen_ray.store.process import is_gone, process_name

# S3 tells times in whole seconds and from many machines; a challenger waits this much longer.
_MARGIN_S = 2.0
_POLL_S = 1.0
_DIGITS = 9
# Goes on while the machine sleeps, where the system has such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True)
class Tenure:
    """What a lease file says."""

    id: str
    owner: str
    host: str
    pid: int
    since: str
    ttl_s: float
    process: str
    released: bool = False


class Lease:
    """Held from construction to `release` (or the end of `with`); a thread renews it three times per `ttl_s`.

    `token` grows with each tenure of the name. The holder asks `lost`, or calls `check`, before it acts.
    Raises LeaseError while another holds it, at once or after `wait_s`.
    """

    def __init__(self, objects: Objects, name: str, owner: str, ttl_s: float, wait_s: float = 0.0):
        if ttl_s <= 0:
            raise ValueError(f"a lease lasts longer than 0 s, not {ttl_s}")
        self.name = name
        self.token = 0
        self._objects = objects
        self._folder = lease_folder(name)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        self._tenure = Tenure(uuid.uuid4().hex, owner, socket.gethostname(), pid, now, ttl_s, process_name(pid))
        self._valid_until = 0.0
        self._taken = False  # another has held it since
        self._released = threading.Event()
        self._writing = threading.Lock()
        self._acquire(time.monotonic() + wait_s)
        threading.Thread(target=self._keep, name=f"lease-{name}", daemon=True).start()

    @property
    def lost(self) -> bool:
        """Whether another may hold it now."""
        return time.clock_gettime(_CLOCK) >= self._valid_until

    def check(self, wait_s: float = 0.0) -> None:
        """Raise LeaseError if the lease is lost; where nobody else has had it, it is taken back, within `wait_s`."""
        deadline = time.monotonic() + wait_s
        while self.lost:
            with self._writing, contextlib.suppress(StoreError):
                if self.lost and not self._taken and not self._released.is_set():
                    self._take_back()
            if self.lost and (self._taken or self._released.is_set() or time.monotonic() >= deadline):
                raise LeaseError(
                    f"lease {self.name!r} (token {self.token}) was lost: it could not be renewed for"
                    f" {self._tenure.ttl_s:g} s, so another may hold it; run again to go on from what is committed"
                )
            if self.lost:
                time.sleep(_POLL_S)

    def release(self) -> None:
        """Let go, so that the next need not wait; does nothing a second time."""
        if self._released.is_set():
            return
        self._released.set()
        with self._writing:
            held, self._valid_until = not self.lost, 0.0
            if held:
                with contextlib.suppress(StoreError):  # unreleased, it ends by itself
                    self._write(replace(self._tenure, released=True))

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _acquire(self, deadline: float) -> None:
        while True:
            try:
                return self._try_acquire()
            except LeaseError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))

    def _try_acquire(self) -> None:
        now = self._store_now()  # before the listing: a tenure renewed since then only looks longer
        highest = self._highest_token()
        if highest:
            tenure, ends = self._read(highest)
            if not tenure.released and not is_gone(str(tenure.process)) and now < ends:
                raise self._held_by(highest, tenure, ends)
        started = time.clock_gettime(_CLOCK)
        if not self._create_next(highest):
            raise self._held_by(highest + 1, *self._read(highest + 1))
        self.token, self._valid_until = highest + 1, started + self._tenure.ttl_s

    def _held_by(self, token: int, tenure: Tenure, ends: datetime) -> LeaseError:
        return LeaseError(
            f"{self.name!r} is held by {tenure.owner} on {tenure.host} (process {tenure.pid}, token {token}) since"
            f" {tenure.since}; it ends {ends:%Y-%m-%d %H:%M:%S} UTC unless renewed: stop it or wait"
        )

    def _keep(self) -> None:
        while not self._released.wait(self._tenure.ttl_s / 3) and not self._taken:
            with self._writing, contextlib.suppress(StoreError):  # the next turn tries again
                if self._released.is_set():
                    return
                if self.lost:
                    self._take_back()
                else:
                    self._renew()

    def _renew(self) -> None:
        started = time.clock_gettime(_CLOCK)
        if self._objects.exists(self._path(self.token + 1)):
            self._taken, self._valid_until = True, 0.0
            return
        self._write(self._tenure)
        if not self.lost:
            self._valid_until = started + self._tenure.ttl_s

    def _take_back(self) -> None:
        """Win the next token, if nobody has."""
        started = time.clock_gettime(_CLOCK)
        if not self._create_next(self.token):
            self._taken = True
            return
        self.token, self._valid_until = self.token + 1, started + self._tenure.ttl_s

    def _create_next(self, token: int) -> bool:
        """Whether the tenure after `token` is ours now, also where the reply to a put was lost and the put retried."""
        if self._objects.create(self._path(token + 1), _encoded(self._tenure)):
            return True
        tenure, _ = self._read(token + 1)
        return tenure.id == self._tenure.id

    def _store_now(self) -> datetime:
        marker = f"{self._folder}/now"
        self._objects.replace(marker, self._tenure.id.encode())
        dated = self._objects.read_dated(marker)
        assert dated is not None, "just written, never deleted"
        return dated[1]

    def _highest_token(self) -> int:
        names = (path.rpartition("/")[2] for path in self._objects.list(self._folder))
        return max((int(name) for name in names if name.isdigit()), default=0)

    def _read(self, token: int) -> tuple[Tenure, datetime]:
        """A tenure and the time, by the store's clock, at which it is over unless it was released."""
        path = self._path(token)
        data, written = self._objects.read_dated(path) or (b"", datetime.max)
        try:
            tenure = Tenure(**json.loads(data))
            return tenure, written + timedelta(seconds=tenure.ttl_s + _MARGIN_S)
        except (ValueError, TypeError):
            raise StoreError(f"lease {self._objects.where(path)} is damaged; delete it if no driver runs") from None

    def _write(self, tenure: Tenure) -> None:
        self._objects.replace(self._path(self.token), _encoded(tenure))

    def _path(self, token: int) -> str:
        return f"{self._folder}/{token:0{_DIGITS}d}"


def _encoded(tenure: Tenure) -> bytes:
    return json.dumps(asdict(tenure)).encode()
