"""The documentation: its commands parse and work in a clone, and the files it names exist."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from torch.distributed.run import get_args_parser

from helpers import processes
from helpers.folders import ROOT
from selfment.cli import parser

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [
    path for name in ("examples", "benchmarks") for path in sorted(ROOT.glob(f"{name}/*.py"))
]
MODULES = sorted(ROOT.glob("selfment/**/*.py"))

OURS = ("selfment", "python", "pip", "torchrun")
#: Programs of other projects in the documentation; their arguments are not checked.
OTHERS = {
    *("pytest", "ruff", "mypy", "find", "check-jsonschema", "zizmor"),
    *("sphinx-build", "pre-commit", "mkdir", "ln", "tar"),
}

pytestmark = pytest.mark.skipif(not PAGES[0].exists(), reason="needs the source tree")


class Command(NamedTuple):
    """A command in the documentation."""

    file: str
    text: str
    words: list[str]
    whole: bool  # True if it can be typed as it is: a line of its own, not shortened in a sentence


def split(text: str) -> Iterator[list[str]]:
    """Yields the words of each simple command in a line of a shell."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("&|;"):
            if words:
                yield words
            words = []
        elif words or not re.fullmatch(r"[A-Z_]+=.*", word):  # not an environment variable
            words.append(word)


def commands() -> list[Command]:
    """Returns the commands in pages, in headers of scripts, and in docstrings and messages."""
    printed = []
    for path in (*PAGES, *SCRIPTS, *MODULES):
        text, name = path.read_text(), str(path.relative_to(ROOT))
        lines: list[str] = []
        if path.suffix == ".md":
            for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
                lines += block.replace("\\\n", " ").splitlines()
            text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        elif path in SCRIPTS:
            header = text.split('"""')[1]
            lines += re.findall(rf"^ {{4}}((?:{'|'.join(OURS)}) .*)$", header, re.MULTILINE)
        for line in lines:
            printed += [Command(name, line, words, True) for words in split(line)]
        for span in re.findall(rf"`((?:{'|'.join(OURS)}) [^`{{}}]*)`", text):
            whole = path.suffix == ".md" and span.startswith("torchrun")
            printed += [Command(name, span, words, whole) for words in split(span)]
    return [command for command in printed if command.words[0] not in ("for", "done", "do")]


def check_ours(words: list[str], whole: bool) -> None:
    """Parses a command of selfment; for a shortened one, only checks that its options exist."""
    if words == ["..."]:
        return
    words = [word for word in words if word not in ("...", "-h", "--help")]
    top = parser()
    if whole:
        top.parse_args(words)
        return
    choices = top._subparsers._group_actions[0].choices
    assert words[0] in choices
    known = choices[words[0]]._option_string_actions
    assert [word for word in words if word.startswith("--") and word not in known] == []


@pytest.mark.parametrize(
    "command", commands(), ids=lambda command: f"{command.file}: {command.text}"
)
def test_printed_commands_are_commands(command: Command) -> None:
    program, *words = command.words
    joined = " ".join(command.words)
    assert "-m selfment" not in joined or command.file == "selfment/__main__.py", (
        "in the source tree this would import the folder, in which nothing is built"
    )
    if program == "selfment":
        check_ours(words, command.whole)
    elif program == "torchrun":
        words = [re.sub("^N$", "2", word) for word in words if word != "..." or len(words) > 9]
        if "--no-python" in words and not command.whole:
            words = ["--no-python", *words[words.index("--no-python") + 1 :]]
        launch = get_args_parser().parse_args(words)
        assert launch.no_python
        assert launch.training_script == "selfment"
        if launch.training_script_args:
            check_ours(launch.training_script_args, command.whole)
    elif program == "python":
        script = words[0]
        if script != "-m":
            assert (ROOT / script).is_file()
            text = (ROOT / script).read_text()
            options = {word.strip("[]") for word in words[1:] if word.strip("[").startswith("--")}
            if script != "setup.py":
                assert {option for option in options if f'"{option}"' not in text} == set()
    elif program == "pip":
        assert words[0] == "install"
        extras = re.search(r"\[([a-zA-Z,.]+)\]", joined)
        declared = (ROOT / "pyproject.toml").read_text()
        for extra in extras[1].split(",") if extras else ():
            assert extra in ("NAME", "...") or re.search(rf"^{extra} = \[", declared, re.MULTILINE)
    elif program.startswith("."):
        assert os.access(ROOT / program, os.X_OK)
    else:
        assert program in OTHERS


def test_commands_are_found() -> None:
    texts = [" ".join(command.words) for command in commands()]
    for part in (
        "selfment label photos/",
        "torchrun --nproc",
        "python benchmarks/soak",
        "pip inst",
    ):
        assert [text for text in texts if text.startswith(part)], part
    assert len(texts) > 50


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_and_tests_that_pages_name_exist(page: Path) -> None:
    tests = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    sources = "".join(tests.values())
    for name in re.findall(r"`([\w./*-]+)`", page.read_text()):
        if re.match(r"(selfment|csrc|tests|docs|benchmarks|examples|\.ci)/", name):
            pattern = re.sub(r"[A-Z]{4,}", "*", name)  # NAME and others stand for any name
            assert list(ROOT.glob(pattern)), name
        elif re.fullmatch(r"test_\w+\.py", name):
            assert name in tests
        elif name.startswith("test_"):
            assert f"def {name}(" in sources, name


@pytest.mark.parametrize(
    "script",
    [path for path in SCRIPTS if "argparse" in path.read_text()],
    ids=lambda path: path.stem,
)
def test_scripts_say_how_they_are_used(script: Path) -> None:
    """Scripts run in the clone, as their headers say."""
    done = processes.run([sys.executable, script.relative_to(ROOT), "--help"], cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["", "torchrun"])
def test_the_command_runs_in_the_source_tree(tmp_path: Path, launcher: str) -> None:
    """The command runs by itself and under torchrun; the folder must not hide the package."""
    folder = Path(sys.executable).parent
    assert (folder / "selfment").exists(), "the package is not installed"
    label = ["selfment", "label", "--samples", "--size", "96", "--out", tmp_path / "out"]
    if launcher:
        launch = [launcher, "--standalone", "--nproc-per-node", "2"]
        label = [*launch, "--log-dir", tmp_path / "torchrun", "--no-python", *label]
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    processes.run([*label, "--threads", "1"], cwd=ROOT, env=environment, check=True)
    rows = (tmp_path / "out/labels.jsonl").read_text().splitlines()
    assert len(list((tmp_path / "out").glob("*.png"))) == len(rows) > 0
