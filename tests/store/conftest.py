"""The places every test of the store runs on: a folder, and a bucket of a server on loopback, by S3 and as GCS."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from metagen_ray.store import Store, open_store
from tests.store.s3_server import BUCKET, credentials, make_bucket, s3_python, s3_server


@pytest.fixture(scope="session")
def moto_python() -> Path:
    try:
        return s3_python()
    except subprocess.SubprocessError as error:
        pytest.skip(f"moto cannot be installed: {getattr(error, 'stderr', None) or error}")


@pytest.fixture(scope="session")
def s3_endpoint(moto_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("s3") / "server.log"
    with s3_server(moto_python, log) as endpoint, credentials():
        make_bucket(endpoint)
        os.environ["GOOGLE_BASE_URL"] = endpoint
        yield endpoint
        del os.environ["GOOGLE_BASE_URL"]


@pytest.fixture(params=["disk", "s3", "gcs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty root, on disk and in a bucket."""
    if request.param == "disk":
        return str(tmp_path / "store")
    endpoint = request.getfixturevalue("s3_endpoint")
    if request.param == "gcs":
        return f"gs://{BUCKET}/{uuid.uuid4().hex}"
    return f"s3://{BUCKET}/{uuid.uuid4().hex}?endpoint={endpoint}"


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root)
