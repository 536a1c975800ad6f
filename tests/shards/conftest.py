"""Fixtures: an object store on this machine, and a folder on each kind of file system."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers import stores
from selfment.shards.store import Store
from selfment.shards.stores import open_store

SECRET = "wJalrXUtnFEMI"


@pytest.fixture(scope="session")
def object_server() -> Iterator[str | None]:
    """Host and port of a server that answers like S3; None if its libraries are missing."""
    if find_spec("moto") is None or find_spec("pyarrow") is None:
        yield None
        return
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs each request
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(object_server: str | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty bucket; the server and the credentials are in the environment."""
    if object_server is None:
        pytest.skip("no moto or no PyArrow: pip install 'moto[s3]' pyarrow")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{object_server}")
    from pyarrow import fs

    name = f"bucket-{uuid.uuid4().hex}"
    system, _ = fs.FileSystem.from_uri(f"s3://{name}?allow_bucket_creation=true")
    system.create_dir(name)
    return f"s3://{name}"


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, object_server: str | None) -> Store:
    """An empty folder on each kind of file system."""
    if request.param == "local":
        return open_store("out", tmp_path / "store")
    pytest.importorskip("pyarrow", reason="no PyArrow: pip install 'selfment[shards]'")
    if request.param == "memory":
        return open_store("out", f"memory://{uuid.uuid4().hex}/store")
    return open_store("out", f"{request.getfixturevalue('bucket')}/store")


@pytest.fixture
def server_base(
    request: pytest.FixtureRequest, tmp_path: Path, object_server: str | None
) -> Iterator[str]:
    """An empty folder on this machine or on a server like an object store, by its scheme."""
    if request.param == "local":
        yield str(tmp_path)
    elif request.param == "s3":
        yield request.getfixturevalue("bucket")
    else:
        yield from stores.bucket_on(request.param, tmp_path / "server")
