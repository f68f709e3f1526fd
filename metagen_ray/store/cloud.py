"""Objects in a bucket of S3 (or what speaks it) or GCS, through obstore. Knows nothing of shards.

Credentials come from the environment alone (AWS_*, GOOGLE_*, instance roles); an address that carries one is refused.
"""

import contextlib
import difflib
import itertools
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore import exceptions
from obstore.store import GCSStore, S3Store

from metagen_ray.errors import StoreError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_OPTIONS = {"s3": ("endpoint", "region", "allow_http"), "gs": ()}
# GCS gets a token that opens more than the bucket: where it is sent is never for an address in a study file to say.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_TOKEN", "GOOGLE_BEARER_TOKEN")
_ENDPOINTS = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "gs": ("GOOGLE_BASE_URL",)}
_TRIES = 3
"""Times a put is tried that was told of a rival whom nobody can find (S3 answers so while a delete is under way)."""

_PAGE = 1000  # the most names that a service lists in one answer

_PATIENCE, _FIRST_WAIT, _LONGEST_WAIT = timedelta(minutes=3), timedelta(seconds=0.1), timedelta(seconds=10)
# A request may carry a whole adapter, so its time is generous; a connection that does not open is given up soon. The
# timeout bounds the tries, never their count. A wait is drawn from the first one up to `base` times the one before:
# with a base of 2 waits shrink as often as they grow, and 60 of them have lasted 16 s.
_PATIENT: "tuple[RetryConfig, ClientConfig]" = (
    {
        "max_retries": _PATIENCE // _FIRST_WAIT,
        "retry_timeout": _PATIENCE,
        "backoff": {"init_backoff": _FIRST_WAIT, "max_backoff": _LONGEST_WAIT, "base": 4},
    },
    {"timeout": timedelta(minutes=5), "connect_timeout": timedelta(seconds=5)},
)
# For small objects somebody waits for: opening a store, and leases, which a hanging connection must not end.
_HASTY: "tuple[RetryConfig, ClientConfig]" = (
    {"max_retries": 2, "retry_timeout": timedelta(seconds=20)},
    {"timeout": timedelta(seconds=10), "connect_timeout": timedelta(seconds=5)},
)


class CloudObjects:
    """Objects below the prefix of one bucket; `hasty` gives up on a failing service within seconds, not minutes."""

    def __init__(self, url: str, *, hasty: bool = False):
        self.root = url
        self._address = url.partition("?")[0].rstrip("/")
        with self._explained(""):
            self._store = _connect(url, *(_HASTY if hasty else _PATIENT))

    def create(self, path: str, data: bytes) -> bool:  # noqa: D102 (the protocol says it)
        for _ in range(_TRIES):
            with self._explained(path), contextlib.suppress(exceptions.AlreadyExistsError):
                obstore.put(self._store, path, data, mode="create")
                return True
            if self.exists(path):
                return False
        raise StoreError(f"store {self.where(path)}: the service refuses the object, yet has none; try again")

    def replace(self, path: str, data: bytes) -> None:  # noqa: D102
        with self._explained(path):
            obstore.put(self._store, path, data, use_multipart=False)

    def read(self, path: str) -> bytes | None:  # noqa: D102
        dated = self.read_dated(path)
        return None if dated is None else dated[0]

    def read_tail(self, path: str, limit: int) -> bytes | None:  # noqa: D102
        with self._explained(path), contextlib.suppress(FileNotFoundError):
            return bytes(obstore.get(self._store, path, options={"range": {"suffix": limit}}).bytes())
        return None

    def read_dated(self, path: str) -> tuple[bytes, datetime] | None:  # noqa: D102
        with self._explained(path), contextlib.suppress(FileNotFoundError):
            found = obstore.get(self._store, path)
            return bytes(found.bytes()), found.meta["last_modified"]
        return None

    def exists(self, path: str) -> bool:  # noqa: D102
        with self._explained(path), contextlib.suppress(FileNotFoundError):
            obstore.head(self._store, path)
            return True
        return False

    def list(self, folder: str) -> Iterator[str]:  # noqa: D102
        first = list(itertools.islice(self._listed(folder), _PAGE))
        yield from first
        if len(first) == _PAGE:
            # Names come in order, a page at a request; what one page does not hold is read from several places at once.
            ends = [end for end in (f"{folder}/{digit}" for digit in "123456789abcdef") if end > first[-1]]
            ranges = itertools.pairwise((first[-1], *ends, None))
            with ThreadPoolExecutor(len(ends) + 1, "list") as threads:
                yield from itertools.chain.from_iterable(
                    threads.map(lambda span: list(self._listed(folder, *span)), ranges)
                )

    def _listed(self, folder: str, after: str | None = None, to: str | None = None) -> Iterator[str]:
        """Paths below `folder` behind `after`, up to `to` and with it."""
        with self._explained(folder):
            for page in obstore.list(self._store, folder, offset=after, chunk_size=_PAGE):
                for found in page:
                    if to is not None and found["path"] > to:
                        return
                    yield found["path"]

    def delete(self, path: str) -> None:  # noqa: D102
        with self._explained(path), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, path)

    def where(self, path: str) -> str:  # noqa: D102
        return f"{self._address}/{path}"

    @contextlib.contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
            raise StoreError(f"store {self.where(path)}: access denied; {_credentials_advice(self.root)}") from None
        except FileNotFoundError as error:
            raise StoreError(f"store {self._address}: {_missing(error)}") from None
        except (exceptions.AlreadyExistsError, StoreError):
            raise
        except (exceptions.BaseError, ValueError, TypeError) as error:
            raise StoreError(f"store {self.where(path)}: {_reason(error, self.root)}") from None


def _connect(url: str, retries: "RetryConfig", client: "ClientConfig") -> S3Store | GCSStore:
    parts = urlsplit(url)
    bucket, prefix = parts.netloc, parts.path.strip("/")
    if "@" in bucket + parts.query:
        raise StoreError("the store's address carries a user or key; leave it out and export it in the environment")
    if not _BUCKET.fullmatch(bucket):
        raise StoreError(f"store {url}: {bucket!r} is no bucket name; write {parts.scheme}://BUCKET/PREFIX")
    options = _options(parts.scheme, parts.query)
    common: dict[str, Any] = {"prefix": prefix or None, "retry_config": retries}
    named = (os.environ[name] for name in _ENDPOINTS[parts.scheme] if os.environ.get(name))
    endpoint = str(options.get("endpoint") or next(named, ""))
    allowed = options.pop("allow_http", str(endpoint.startswith("http://"))).lower() in ("true", "1")
    common["client_options"] = {**client, "allow_http": allowed}
    if parts.scheme == "gs":
        return GCSStore(bucket, **common)
    return S3Store(bucket, **options, **common)


def _options(scheme: str, query: str) -> dict[str, str]:
    known = _OPTIONS[scheme]
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none'}"
            raise StoreError(f"the store's address has the unknown option {name!r}; {hint}")
    return options


def _credentials_advice(url: str) -> str:
    if url.startswith("gs:"):
        return "check GOOGLE_APPLICATION_CREDENTIALS and the rights of that account on the bucket"
    return "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and their rights on the bucket"


def _missing(error: FileNotFoundError) -> str:
    if "NoSuchBucket" in str(error) or "bucket does not exist" in str(error):
        return "there is no such bucket; make it, or correct the address"
    return f"not found ({str(error).splitlines()[0][:200]})"


def _reason(error: Exception, url: str) -> str:
    text = str(error)
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        return f"no credentials found; {_credentials_advice(url)}"
    if "403 Forbidden" in text or "401 Unauthorized" in text:  # a listing has no error class of its own
        return f"access denied; {_credentials_advice(url)}"
    if "NoSuchBucket" in text:
        return "there is no such bucket; make it, or correct the address"
    line = (text.splitlines() or [type(error).__name__])[0][:300]
    for name in _SECRETS:
        if os.environ.get(name):
            line = line.replace(os.environ[name], "***")
    return f"{line}; check the address, the region and the network"
