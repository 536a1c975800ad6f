"""Runs over files on a web server, which can only be read."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers import mortal, processes
from helpers import shard_runs as shards


@pytest.mark.slow
def test_tar_files_on_a_web_server(tmp_path):
    pytest.importorskip("aiohttp", reason="no client for http://: pip install aiohttp")
    files = shards.photos(4)
    inputs = shards.write_shards(f"{tmp_path}/in", "tar", files, 2)
    handler = partial(QuietHandler, directory=inputs)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever)
        url, out = f"http://127.0.0.1:{server.server_port}", f"{tmp_path}/out"
        words = ("--size", 96, "--device", "cpu")
        done = run("label", url + "/{00000..00001}.tar", "--out", out, *words)
        glob = run("label", f"{url}/*.tar", "--out", out, *words)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    local = f"{tmp_path}/local"
    assert run("label", inputs, "--out", local, *words).returncode == 0
    assert shards.sealed(out) == shards.sealed(local)
    assert "`inputs` must name files one by one, or by braces, on an HTTP server" in glob.stderr


class QuietHandler(SimpleHTTPRequestHandler):
    """A server of files that does not log."""

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = mortal.alone(*arguments)
    return subprocess.run(words, capture_output=True, text=True, timeout=processes.LIMIT)
