"""Output folders of runs over shards: units of image files, what they replace, foreign files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.shard_rows import ALL, Killed, MortalStore, form, good, unit
from selfment.shards.formats import Format
from selfment.shards.outputs import Outputs
from selfment.shards.rows import SourceFile, Unit
from selfment.shards.stores import Sources, open_store
from selfment.shards.units import Inputs


def photos(*names: str, changed: Sequence[str] = ()) -> list[SourceFile]:
    """Returns image files; those in ``changed`` have another time."""
    return [
        SourceFile(f"/photos/{name}.jpg", f"{name}.jpg", 100, 7 if name in changed else 5)
        for name in names
    ]


def group(files: Sequence[SourceFile]) -> Unit:
    """Returns the unit of some image files, which is named after them."""
    digest = hashlib.sha256(repr(files).encode()).hexdigest()[:12]
    return Unit(f"files-{digest}", "files", tuple(files))


def do(store: Any, made: Format, files: Sequence[SourceFile], gone: str = "") -> list[str]:
    """Does a run over image files, two to a unit; returns the names of the files it computed."""
    outputs = Outputs(store, made)
    units = Inputs([], files, Sources()).units(outputs.recorded_units(), block=2)
    computed = []
    for each in outputs.plan(units):
        output = outputs.open(each)
        keys = [file.name.removesuffix(".jpg") for file in each.files]
        for key, file in zip(keys, each.files, strict=True):
            if key not in output.done:
                computed.append(key)
                output.add(good(key, len(key) + file.mtime_ns))
        output.seal(keys)
    outputs.finish(units, lambda uris: [not (gone and gone in uri) for uri in uris])
    return computed


def contents(store: Any) -> dict[str, bytes]:
    return {file.name: store.read(file.name) for file in store.list()}


def keys(store: Any, made: Format) -> list[str]:
    """Returns the keys of all rows of all shards."""
    units = Outputs(store, made).recorded_units()
    return sorted(row.key for each in units for row in made.read(store, each))


@pytest.mark.parametrize("to", ALL)
def test_new_files_do_not_disturb_the_units_of_others(tmp_path: Path, to: str) -> None:
    store, made = open_store("out", tmp_path), form(to)
    assert do(store, made, photos("b", "c", "d")) == ["b", "c", "d"]
    before = contents(store)
    assert do(store, made, photos("a", "b", "c", "d", "e")) == ["a", "e"]
    assert before.items() <= contents(store).items()
    assert keys(store, made) == ["a", "b", "c", "d", "e"]
    assert do(store, made, photos("a", "b", "c", "d", "e")) == []


@pytest.mark.parametrize("to", ALL)
def test_units_whose_files_change_or_go_are_superseded(
    tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store, made = open_store("out", tmp_path / "out"), form(to)
    do(store, made, photos("a", "b", "c", "d", "e", "f"))
    left = photos("a", "c", "d", "e", "f", changed=["d"])
    assert do(store, made, left, gone="/b.jpg") == ["a", "c", "d"]
    said = capsys.readouterr().err
    assert said.startswith("2 shards were removed: the files are in other shards now, or gone (")
    assert keys(store, made) == ["a", "c", "d", "e", "f"]
    fresh = open_store("out", tmp_path / "fresh")
    do(fresh, made, [file for file in left if file.name not in ("e.jpg", "f.jpg")])
    do(fresh, made, left)
    assert contents(store) == contents(fresh)


@pytest.mark.parametrize("to", ALL)
def test_files_that_are_not_among_the_inputs_but_exist_keep_their_results(
    tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store, made = open_store("out", tmp_path), form(to)
    do(store, made, photos("a", "b", "c", "d"))
    before = contents(store)
    do(store, made, photos("a", "x"))
    do(store, made, photos("y", "z"))
    assert before.items() <= contents(store).items()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("to", ALL)
def test_a_run_that_is_killed_while_it_supersedes_goes_on(tmp_path: Path, to: str) -> None:
    made = form(to)
    old = open_store("out", tmp_path / "old")
    do(old, made, photos("a", "b", "c"))
    left, nth, whole = photos("a", "b", "c", changed=["a"]), 0, None
    while whole is None:
        folder = tmp_path / str(nth)
        shutil.copytree(tmp_path / "old", folder)
        mortal = MortalStore(open_store("out", folder), nth)
        try:
            do(mortal, made, left)
            whole = contents(open_store("out", folder))
        except Killed:
            do(open_store("out", folder), made, left)
        nth += 1
    assert nth > 10
    for each in range(nth):
        assert contents(open_store("out", tmp_path / str(each))) == whole


def test_results_replace_no_input(tmp_path: Path) -> None:
    place = str(tmp_path)
    store = open_store("out", tmp_path)
    inside = SourceFile(f"{place}/a.tar", "a.tar", 100, 5)
    rule = "`out` must not be where results replace inputs: "
    with pytest.raises(ValueError, match=f"{rule}{place}/a.tar"):
        Outputs(store, form("tar")).plan([Unit("a", "tar", (inside,))])
    assert Outputs(store, form("parquet")).plan([Unit("a", "tar", (inside,))])
    photo = Unit("files-1", "files", (SourceFile(f"{place}/photos/a.png", "a.png", 100, 5),))
    with pytest.raises(ValueError, match=f"{rule}{place}/photos/a.png"):
        Outputs(store, form("files")).plan([photo])
    assert Outputs(store, form("tar")).plan([photo])
    outside = SourceFile(f"{place}2/a.tar", "a.tar", 100, 5)
    assert Outputs(store, form("tar")).plan([Unit("a", "tar", (outside,))])


def test_files_of_other_programs_stay(tmp_path: Path) -> None:
    store = open_store("out", tmp_path)
    store.write("set/00000.tar", b"mine")
    with pytest.raises(ValueError, match=r"`out` must hold no set/00000\.tar of another program"):
        Outputs(store, form("tar")).plan([unit()])
    made = Outputs(store, form("parquet"))
    assert made.plan([unit()])
    output = made.open(unit())
    output.add(good("a"))
    output.seal(["a"])
    with pytest.raises(ValueError, match=r"`out` must hold no set/00000\.tar of another program"):
        Outputs(store, form("tar")).plan([unit()])


def test_files_go_to_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"`out` must be empty, or have .*: got {tmp_path} with a"):
        Outputs(open_store("out", tmp_path), form("files")).plan([unit()])
    store = open_store("out", tmp_path / "out")
    assert Outputs(store, form("files")).plan([unit("a"), unit("ab/c")])
    sentence = r"`inputs` must not have results in one folder: those of a\.tar and of a/b"
    photo = SourceFile("/photos/a/b.jpg", "a/b.jpg", 100, 5)
    for other in (unit("a/b"), Unit("files-1", "files", (photo,))):
        assert Outputs(store, form("tar")).plan([unit("a"), other])
        with pytest.raises(ValueError, match=sentence):
            Outputs(store, form("files")).plan([unit("a"), other])


def test_results_of_another_input_with_the_same_name_stay(tmp_path: Path) -> None:
    store, made = open_store("out", tmp_path), form("tar")
    output = Outputs(store, made).open(unit())
    output.add(good("a"))
    output.seal(["a"])
    moved = SourceFile("/elsewhere/set/00000.tar", "set/00000.tar", 10240, 5)
    assert Outputs(store, made).plan([Unit("set/00000", "tar", (moved,))]) == []
    other = SourceFile("/elsewhere/set/00000.tar", "set/00000.tar", 20480, 5)
    sentence = (
        r"`out` must have no results of another input: set/00000\.tar is of /data/set/00000\.tar, "
        r"and would be of /elsewhere/set/00000\.tar"
    )
    with pytest.raises(ValueError, match=sentence):
        Outputs(store, made).plan([Unit("set/00000", "tar", (other,))])


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    store, made = open_store("out", tmp_path), form("tar")
    do(store, made, photos("a"))
    names = [f"{folder}/.{'0' * 32}.tmp" for folder in (".selfment/records", ".selfment/parts/a")]
    for name in names:
        store.write(name, b"half")
        os.utime(tmp_path / name, (0, 0))
    do(store, made, photos("a", "b"))
    assert not any(name.endswith(".tmp") for name in contents(store))
