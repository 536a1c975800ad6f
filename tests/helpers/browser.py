"""A headless Chromium that tests drive by its debugging protocol, through a pair of pipes.

The pipes need no port and no library. The browser ends with the block that opened it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import processes

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")

#: Marks tests that need the browser.
needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason="there is no chromium or google-chrome to open the page in"
)

#: Seconds after which an answer of the browser counts as missing.
LIMIT = 120.0

# --no-sandbox: as root, which CI may be, there is none. The rest keeps it off the network.
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--remote-debugging-pipe",
    *(
        f"--disable-{name}"
        for name in (
            *("gpu", "dev-shm-usage", "background-networking", "component-update", "sync"),
            *("extensions", "breakpad", "default-apps"),
        )
    ),
)
# The browser reads requests from file 3 and writes answers to file 4.
_START = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for number, pipe in enumerate(pipes, 3):
    os.dup2(pipe, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
# The keys with a name: the code of each, and the text that it types.
_KEYS = {
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
    "End": (35, ""),
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Home": (36, ""),
    "Tab": (9, ""),
}


class Browser:
    """One page of the browser."""

    def __init__(self, requests: int, answers: int, folder: Path) -> None:
        """``requests``, ``answers``: the pipes. ``folder``: for the files that the page saves."""
        self._requests, self._answers = requests, answers
        self._buffer = b""
        self._ids = itertools.count(1)
        self._session: dict[str, str] = {}
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(folder),
            eventsEnabled=True,
        )

    def open(self, page: Path) -> None:
        """Opens a file, and returns when its scripts have run and it has been drawn."""
        self._call("Page.navigate", url=page.as_uri())
        self._wait_until_drawn()

    def reload(self) -> None:
        """Loads the page again."""
        self._call("Page.reload")
        self._wait_until_drawn()

    def _wait_until_drawn(self) -> None:
        self._wait_for("Page.loadEventFired")
        # The page learns what is in view after the first frame, and before the second one.
        frame = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
        for _ in range(2):
            self.evaluate(frame)

    def evaluate(self, script: str) -> Any:
        """Returns the value of an expression, of a promise when it is kept; ready for JSON."""
        answer = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """Returns the texts of the elements that match, without those that are hidden."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        visible = "element => element.checkVisibility()"
        return self.evaluate(f"{found}.filter({visible}).map(e => e.textContent.trim())")

    def click(self, selector: str) -> None:
        """Clicks an element in the middle, where the page must show it."""
        place = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            options = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], **options)

    def press(self, *keys: str) -> None:
        """Presses keys, one after another: letters, or names such as "ArrowLeft"."""
        for key in keys:
            code, text = _KEYS.get(key, (ord(key.upper()[0]), key))
            event = {"key": key, "text": text, "windowsVirtualKeyCode": code}
            self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **event)
            self._call("Input.dispatchKeyEvent", type="keyUp", **event)

    def enter(self, selector: str, value: object) -> None:
        """Sets the value of an input as a user does, so that the page is told."""
        self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            f"e.value = {json.dumps(str(value))}; "
            "for (const n of ['input', 'change']) e.dispatchEvent(new Event(n, {bubbles: true})); "
            "})()"
        )

    def saved(self, name: str) -> bytes:
        """Waits for a file that the page saves; returns its content."""
        while True:
            event = self._wait_for("Browser.downloadProgress")
            if event["params"]["state"] != "inProgress":
                assert event["params"]["state"] == "completed"
                return (self.folder / name).read_bytes()

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the window."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def complaints(self) -> list[str]:
        """Returns the errors and warnings of the page so far."""
        self.evaluate("0")  # events before this one have arrived
        found = []
        for event in self.events:
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded":
                found.append(event["params"]["entry"]["text"])
        return found

    def requested(self) -> list[str]:
        """Returns the schemes of all that the page has loaded so far, and the files."""
        self.evaluate("0")
        addresses = [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url.partition(":")[0] if url.startswith("data:") else url for url in addresses]

    def _call(self, method: str, **options: Any) -> dict[str, Any]:
        number = next(self._ids)
        session = {} if method.startswith(("Target.", "Browser.")) else self._session
        request = {"id": number, "method": method, "params": options, **session}
        os.write(self._requests, json.dumps(request).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]
            self.events.append(message)

    def _wait_for(self, event: str) -> dict[str, Any]:
        """Returns the next event of a kind; each is returned once."""
        while True:
            for place, message in enumerate(self.events):
                if message.get("method") == event:
                    return self.events.pop(place)
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + LIMIT
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._answers, 1 << 20)
            assert data, f"the browser has ended: {(self.folder.parent / 'log').read_text()}"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """Starts the browser, with files of its own that are removed at the end."""
    requests, answers = os.pipe(), os.pipe()
    ours, theirs = (requests[1], answers[0]), (requests[0], answers[1])
    with contextlib.ExitStack() as stack:
        for end in ours:
            stack.callback(os.close, end)
        # The path is short: a socket in it has 107 characters at most.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context((folder / "log").open("w"))
        saved = folder / "saved"
        saved.mkdir()
        command = [sys.executable, "-c", _START, *theirs, PROGRAM, *_OPTIONS]
        try:
            stack.enter_context(
                processes.started(
                    [*command, f"--user-data-dir={folder / 'profile'}", "about:blank"],
                    pass_fds=theirs,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "HOME": str(folder), "TMPDIR": str(folder)},
                )
            )
        finally:
            for end in theirs:
                os.close(end)
        yield Browser(*ours, saved)
