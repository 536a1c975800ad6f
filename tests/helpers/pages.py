"""Pages as files: their data, their structure, and that they load nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = ("meta", "img", "input")


class Reader(HTMLParser):
    """Checks that elements close in order; keeps texts of elements, and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data))


def data_of(page: Path) -> Any:
    """Returns what the scripts of a page read."""
    found = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text()
    )
    assert len(found) == 1
    return json.loads(found[0])


def assert_loads_nothing(page: Path) -> None:
    """Fails for a page that names an address, other than of a namespace, or runs foreign text."""
    text = page.read_text()
    for _, attributes in Reader(text).seen:
        assert not attributes.get("href")
        assert attributes.get("src", "data:").startswith("data:")
    assert "url(" not in text
    assert "@import" not in text
    assert text.count("<script") == 2  # the data and the code
    assert set(re.findall(r"\w+://[^\s\"]*", text)) <= {"http://www.w3.org/2000/svg"}
