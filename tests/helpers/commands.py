"""The command line as a user sees it, without a process of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from selfment import cli


def call(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def label(capsys, folder, out, *options) -> tuple[int, str]:
    """The exit code and stderr of ``selfment label``, less the lines that every run has."""
    arguments = ("label", folder, "--out", out, "--size", 96, *options)
    code = cli.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    usual = ("classic", "backbone", "image/s", "DINO", "?image", "s/image")
    return code, "\n".join(
        line for line in lines if line.strip() and not any(word in line for word in usual)
    )


def errors(out: Path) -> dict[str, str | None]:
    lines = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    return {os.path.basename(line["image"]): line["error"] for line in lines}
