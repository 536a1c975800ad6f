"""`.ci/skipped`: the tests that no run executed."""

from __future__ import annotations

import sys

import pytest

from helpers import processes
from helpers.folders import ROOT

SCRIPT = ROOT / ".ci/skipped"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason=f"there is no {SCRIPT}")


def report(*cases: str) -> str:
    return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"


def case(file: str, name: str, reason: str = "") -> str:
    skipped = f'<skipped message="{reason}">text</skipped>' if reason else ""
    return f'<testcase classname="{file}" name="{name}">{skipped}</testcase>'


def whole(file: str, reason: str) -> str:
    text = repr(("/tests/file.py", 1, f"Skipped: {reason}"))
    skipped = f'<skipped message="collection skipped">{text}</skipped>'
    return f'<testcase classname="" name="{file}">{skipped}</testcase>'


def test_tests_that_a_later_run_executed_are_not_listed(tmp_path):
    first = report(
        case("tests.a", "test_later", "no Ray"),
        case("tests.a", "test_never", "no Ray"),
        case("tests.a", "test_some[1]", "no GPU"),
        case("tests.a", "test_some[2]"),
        whole("tests.b", "no PyArrow"),
        whole("tests.c", "no PyArrow"),
    )
    second = report(
        case("tests.a", "test_later"),
        case("tests.a", "test_never", "no Ray"),
        case("tests.b", "test_any"),
    )
    for name, text in {"first": first, "second": second}.items():
        (tmp_path / name).write_text(text)
    done = processes.run([sys.executable, SCRIPT, tmp_path / "first", tmp_path / "second"])
    assert done.stdout.split("\n", 2)[2].splitlines() == [
        "  1: no GPU",
        "       tests.a::test_some",
        "  1: no PyArrow",
        "       tests.c",
        "  1: no Ray",
        "       tests.a::test_never",
    ]
