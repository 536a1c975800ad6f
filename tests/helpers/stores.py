"""Servers of object stores on this machine, and URLs of what is in them."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

BUCKET = "bucket"
_ACCOUNT = "account"  # of Azurite
_KEY = base64.b64encode(os.urandom(64)).decode()  # for as long as the tests run


def under(base: str, name: str) -> str:
    """Returns the path or URL of a name in a folder, whose URL may have a query."""
    folder, mark, query = base.partition("?")
    return f"{folder}/{name}{mark}{query}"


@contextmanager
def google_server() -> Iterator[str]:
    """Runs a server that answers like Google Cloud Storage; returns its host and port."""
    reason = "no server for gs://: pip install gcp-storage-emulator"
    pytest.importorskip("gcp_storage_emulator", reason=reason)
    port = _free_port()
    words = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1"]
    words += ["--port", str(port), "--in-memory", "--quiet", "--default-bucket", BUCKET]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                with (
                    suppress(ConnectionRefusedError),
                    socket.create_connection(("127.0.0.1", port)),
                ):
                    break
                time.sleep(0.1)
            assert process.poll() is None, "the server has ended"
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def azure_server(folder: Path) -> Iterator[str]:
    """Runs Azurite, which answers like Azure's blob storage; returns its host and port."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("no server for abfs://: npm install -g azurite")
    host = f"127.0.0.1:{_free_port()}"
    words = [program, "--blobPort", host.rpartition(":")[2], "--location", str(folder), "--silent"]
    words += ["--skipApiVersionCheck", "--disableTelemetry"]
    accounts = {**os.environ, "AZURITE_ACCOUNTS": f"{_ACCOUNT}:{_KEY}"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=accounts) as process:
        try:
            assert process.stdout is not None
            assert any("successfully listens" in line for line in process.stdout)
            yield host
        finally:
            process.terminate()


def _azure_signature(host: str) -> str:
    """Makes the bucket; returns a shared access signature for all of the account."""
    reason = "no client that makes signatures: pip install azure-storage-blob"
    blob = pytest.importorskip("azure.storage.blob", reason=reason)
    client = blob.BlobServiceClient(f"http://{host}/{_ACCOUNT}", credential=_KEY)
    client.create_container(BUCKET)
    return str(
        blob.generate_account_sas(
            _ACCOUNT,
            _KEY,
            blob.ResourceTypes(service=True, container=True, object=True),
            blob.AccountSasPermissions(read=True, write=True, delete=True, list=True, create=True),
            datetime.now(timezone.utc) + timedelta(days=1),
            protocol="https,http",
        )
    )


def bucket_on(scheme: str, folder: Path) -> Iterator[str]:
    """Yields the URL of an empty bucket on a server that ends afterwards.

    ``scheme``: "gs" or "abfs". ``folder``: for the server's files.
    """
    if scheme == "gs":
        with google_server() as host:
            yield f"gs://anonymous@{BUCKET}?endpoint_override={host}&scheme=http"
        return
    with azure_server(folder) as host:
        query = f"enable_tls=false&{_azure_signature(host)}"
        yield f"abfs://{_ACCOUNT}@{host}/{BUCKET}?{query}"


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
