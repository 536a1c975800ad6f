"""URLs of files on object stores: their parts, and what of them may be shown."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import cached_property

LOCAL = ("file", "local")  #: schemes of paths on this machine

BUCKETS = ("s3", "s3a", "gs", "gcs")  # protocols whose first folder is a bucket
_ACCOUNTS = ("abfs", "abfss", "az", "adl")  # what precedes the @ in their URLs is no credential
CONTAINERS = (*BUCKETS, *_ACCOUNTS)
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<authority>[^/]*?)(?:/(?P<path>.*?))?"
    r"(?P<query>\?\w+=.*)?",
    re.DOTALL,
)
_HOST = re.compile(r"[^:@]*(:\d+)?")


@dataclass(frozen=True)
class Url:
    """The parts of a URL."""

    scheme: str  #: in lower case
    authority: str  #: a bucket or a host, maybe after credentials and an @
    path: str = ""  #: without the first slash
    query: str = ""  #: with its question mark, or empty

    @classmethod
    def parse(cls, argument: str, text: str) -> Url | None:
        """Returns the parts of a URL; None if ``text`` is a path.

        ``argument``: its name, for errors. Raises ``ValueError``.
        """
        if "\0" in text:
            raise ValueError(f"`{argument}` must be a path or a URL without NUL: got {text!r}")
        match = _URL.fullmatch(text)
        if match is None:
            return None
        url = cls(
            match["scheme"].lower(), match["authority"], match["path"] or "", match["query"] or ""
        )
        if not url.authority and url.scheme in BUCKETS:
            raise ValueError(f"`{argument}` must name a bucket: got {text!r}")
        if not _HOST.fullmatch(url.authority.rpartition("@")[2]):
            raise ValueError(
                f"`{argument}` must be a URL whose credentials, if any, are percent-encoded and "
                f"followed by an @: got one of {url.scheme}"
            )
        return url

    @property
    def uri(self) -> str:
        """The whole URL."""
        return f"{self._join(self.authority)}{self.query}"

    @cached_property
    def public(self) -> str:
        """The URL without credentials and query."""
        user, _, host = self.authority.rpartition("@")
        container = user.partition(":")[0] if self.scheme in _ACCOUNTS else ""
        return self._join(f"{container}@{host}" if container else host)

    def without_secrets(self, message: str) -> str:
        """Returns a message without the credentials and the query."""
        user = self.authority.rpartition("@")[0]
        secrets = [self.query, user, user.partition(":")[2]]
        for secret in filter(None, [self.uri, replace(self, path="").uri, *secrets]):
            message = message.replace(secret, self.public if "://" in secret else "...")
        return message

    def _join(self, authority: str) -> str:
        return f"{self.scheme}://{authority}" + (f"/{self.path}" if self.path else "")


def split_root(argument: str, text: str) -> tuple[str, str]:
    """Returns the root of the file system that has a path or URL, and the rest of its path.

    ``s3://bucket/a/b?scheme=http`` is split into ``s3://bucket?scheme=http`` and ``a/b``, and a
    path into ``/`` and the absolute path without its first slash. ``argument``: its name, for
    errors. Raises ``ValueError``.
    """
    url = Url.parse(argument, text)
    if url is None or url.scheme in LOCAL:
        path = text if url is None else f"/{url.path}"
        return "/", os.path.abspath(path).lstrip("/")
    return replace(url, path="").uri, url.path
