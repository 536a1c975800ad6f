"""Folders that tests read."""

from __future__ import annotations

from pathlib import Path

#: The tests.
TESTS = Path(__file__).resolve().parents[1]

#: The repository: the sources, scripts, examples and pages.
ROOT = TESTS.parent

#: Small inputs and photographs beside the repository; tests that read them are skipped without it.
SHARED = ROOT.parent / "shared"
