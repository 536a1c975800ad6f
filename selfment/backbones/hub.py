"""The Hugging Face hub without a network: the cache at once, not after minutes of retries."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def without_retries() -> Iterator[None]:
    """Sets the hub's offline mode inside the block if its host has no address here.

    Otherwise the hub's library would ask for each file again and again for half a minute before it
    looks into its cache. Behind a proxy nothing is known of the host, and nothing is changed.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before and not getproxies() and not _has_address(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _has_address(url: str) -> bool:
    parts = urlsplit(url)
    try:
        return bool(socket.getaddrinfo(parts.hostname, parts.port or parts.scheme))
    except OSError:
        return False
