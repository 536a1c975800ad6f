"""Pages: one HTML file each, with its styles, scripts and data inside, that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
# The browser itself then refuses to load anything that is not in the file.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


def page(title: str, body: str, *, data: Any = None, assets: Sequence[Path] = ()) -> bytes:
    """Returns an HTML file as UTF-8.

    Args:
        title: The title, as text.
        body: The content, as HTML.
        data: What the scripts read with ``readData()``, ready for JSON.
        assets: Style sheets and scripts, ``.css`` and ``.js``, that follow those of all pages.
    """
    files = [_HERE / "page.css", _HERE / "page.js", *assets]
    styles, scripts = (
        "".join(file.read_text(encoding="utf-8") for file in files if file.suffix == suffix)
        for suffix in (".css", ".js")
    )
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title>\n<style>\n{styles}</style></head>\n<body>\n{body}\n"
        f'<script type="application/json" id="data">{_script_json(data)}</script>\n'
        f"<script>\n{scripts}</script>\n</body></html>\n"
    )
    # A file's name may hold bytes that are no text.
    return text.encode("utf-8", "replace")


def _script_json(data: Any) -> str:
    """JSON without the characters that could end a script element."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
