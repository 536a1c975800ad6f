"""Output folders of runs over shards: units of image files, what they replace, foreign files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.shard_rows import ALL, Killed, MortalStore, bad, form, good, unit
from helpers.shards import tar, units_of
from selfment.shards.formats import Format
from selfment.shards.outputs import Outputs
from selfment.shards.rows import SourceFile, Unit
from selfment.shards.sources import Sources
from selfment.shards.stores import open_store
from selfment.shards.unit_output import UnitOutput


def photos(folder: Path, names: str, time: int = 5) -> Path:
    """Writes files with the suffix of an image, and the same size and time."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.jpg").write_bytes(b"photo")
        os.utime(folder / f"{name}.jpg", (time, time))
    return folder


def do(store: Any, made: Format, *inputs: Path) -> list[str]:
    """Does a run over image files, two to a unit; returns the keys that it computed."""
    outputs = Outputs(store)
    units, sources = units_of(inputs, earlier=outputs.recorded_units(), block=2)
    computed = []
    for each in outputs.plan(units, made, sources):
        output = UnitOutput(store, made, each)
        for key, file in zip(each.keys, each.files, strict=True):
            if key not in output.done:
                computed.append(key)
                output.add(good(key, ord(key[-1]) % 40 + file.mtime_ns % 7))
        output.seal(each.keys)
    outputs.finish(units, sources)
    return computed


def contents(store: Any, hidden: bool = True) -> dict[str, bytes]:
    """Returns the content of each file; ``hidden``: also of what runs need to continue."""
    return {
        file.name: store.read(file.name)
        for file in store.list()
        if hidden or not file.name.startswith(".")
    }


def results(store: Any, made: Format) -> dict[str, tuple[object, dict[str, bytes]]]:
    """Returns the record and the contents of each row."""
    units = Outputs(store).recorded_units()
    rows = [row for each in units for row in made.read(store, each)]
    return {row.key: (row.record, dict(row.files)) for row in rows}


def keys(store: Any, made: Format) -> list[str]:
    """Returns the keys of all rows of all shards."""
    units = Outputs(store).recorded_units()
    return sorted(row.key for each in units for row in made.read(store, each))


@pytest.mark.parametrize("to", ALL)
def test_new_files_do_not_disturb_the_units_of_others(tmp_path: Path, to: str) -> None:
    store, made = open_store("out", tmp_path / "out"), form(to)
    assert do(store, made, photos(tmp_path / "in", "bcd")) == ["b", "c", "d"]
    before = contents(store)
    assert do(store, made, photos(tmp_path / "in", "ae")) == ["a", "e"]
    assert before.items() <= contents(store).items()
    assert keys(store, made) == ["a", "b", "c", "d", "e"]
    assert do(store, made, tmp_path / "in") == []


@pytest.mark.parametrize("to", ALL)
def test_only_files_that_have_changed_are_computed_again(
    tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store, made = open_store("out", tmp_path / "out"), form(to)
    folder = photos(tmp_path / "in", "abcdef")
    do(store, made, folder)
    (folder / "b.jpg").unlink()
    photos(folder, "d", time=6)
    assert do(store, made, folder) == ["d"]
    assert keys(store, made) == ["a", "c", "d", "e", "f"]
    stay = {f"{name}.png" for name in "acdef"} if to == "files" else set()
    assert {name for name in contents(store) if name.endswith(".png")} == stay
    assert do(store, made, folder) == []
    fresh = open_store("out", tmp_path / "fresh")
    do(fresh, made, folder)
    assert results(store, made) == results(fresh, made)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("to", ALL)
def test_a_file_that_changed_twice_or_has_another_key_now_is_computed_again(
    tmp_path: Path, to: str
) -> None:
    store, made = open_store("out", tmp_path / "out"), form(to)
    folder = photos(tmp_path / "in", "ab")
    do(store, made, folder)
    for time in (6, 5):
        assert do(store, made, photos(folder, "a", time)) == ["a"]
    (folder / "b.png").write_bytes(b"photo")  # b.jpg has the key "b.jpg" now
    assert do(store, made, photos(folder, "a", 7)) == ["a", "b.jpg", "b.png"]
    assert keys(store, made) == ["a", "b.jpg", "b.png"]


@pytest.mark.parametrize("to", ALL)
def test_files_that_have_other_names_in_this_run_keep_their_results(
    tmp_path: Path, to: str
) -> None:
    store, made = open_store("out", tmp_path / "out"), form(to)
    folder = photos(tmp_path / "in", "ab")
    do(store, made, folder)
    before = contents(store)
    other = photos(tmp_path / "other", "c")
    assert do(store, made, folder, other) == ["in/a", "in/b", "other/c"]
    assert before.items() <= contents(store).items()


def test_a_unit_without_files_of_its_own_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, made = open_store("out", tmp_path / "out"), form("tar")
    folder = photos(tmp_path / "in", "ab")
    do(store, made, folder)
    for name in "ab":
        assert do(store, made, folder / f"{name}.jpg") == [name]
    assert keys(store, made) == ["a", "a", "b", "b"]
    assert do(store, made, folder) == []
    said = capsys.readouterr().err
    assert "removed: the files are in other shards now, or gone (the first: files-" in said
    assert keys(store, made) == ["a", "b"]


@pytest.mark.parametrize("to", ALL)
def test_files_that_are_not_among_the_inputs_but_exist_keep_their_results(
    tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store, made = open_store("out", tmp_path / "out"), form(to)
    folder = photos(tmp_path / "in", "abcd")
    do(store, made, folder)
    before = contents(store)
    photos(folder, "xyz")
    do(store, made, folder / "a.jpg", folder / "x.jpg")
    do(store, made, folder / "y.jpg", folder / "z.jpg")
    assert before.items() <= contents(store).items()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("to", ALL)
def test_results_stay_until_those_of_a_changed_file_are_there(tmp_path: Path, to: str) -> None:
    store, made = open_store("out", tmp_path / "out"), form(to)
    do(store, made, photos(tmp_path / "in", "abc"))
    before = contents(store, hidden=False)
    photos(tmp_path / "in", "a", time=6)
    outputs = Outputs(store)
    units, sources = units_of([tmp_path / "in"], earlier=outputs.recorded_units())
    left = outputs.plan(units, made, sources)
    output = UnitOutput(store, made, left[0])
    assert output.done == {"b"}
    output.add(good("a"))
    output.flush()
    outputs.finish(units, sources)
    assert contents(store, hidden=False) == before


@pytest.mark.parametrize("to", ALL)
def test_a_run_that_is_killed_while_it_supersedes_goes_on(tmp_path: Path, to: str) -> None:
    made, folder = form(to), photos(tmp_path / "in", "abc")
    do(open_store("out", tmp_path / "old"), made, folder)
    photos(folder, "a", time=6)
    nth, whole = 0, None
    while whole is None:
        out = tmp_path / str(nth)
        shutil.copytree(tmp_path / "old", out)
        try:
            do(MortalStore(open_store("out", out), nth), made, folder)
            whole = contents(open_store("out", out))
        except Killed:
            do(open_store("out", out), made, folder)
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
        Outputs(store).plan([Unit("a", "tar", (inside,))], form("tar"), Sources())
    assert Outputs(store).plan([Unit("a", "tar", (inside,))], form("parquet"), Sources())
    photo = Unit("files-1", "files", (SourceFile(f"{place}/photos/a.png", "a.png", 100, 5),))
    with pytest.raises(ValueError, match=f"{rule}{place}/photos/a.png"):
        Outputs(store).plan([photo], form("files"), Sources())
    assert Outputs(store).plan([photo], form("tar"), Sources())
    outside = SourceFile(f"{place}2/a.tar", "a.tar", 100, 5)
    assert Outputs(store).plan([Unit("a", "tar", (outside,))], form("tar"), Sources())


def test_files_of_other_programs_stay(tmp_path: Path) -> None:
    store = open_store("out", tmp_path)
    store.write("set/00000.tar", b"mine")
    with pytest.raises(ValueError, match=r"`out` must hold no set/00000\.tar of another program"):
        Outputs(store).plan([unit()], form("tar"), Sources())
    assert Outputs(store).plan([unit()], form("parquet"), Sources())
    output = UnitOutput(store, form("parquet"), unit())
    output.add(good("a"))
    output.seal(["a"])
    with pytest.raises(ValueError, match=r"`out` must hold no set/00000\.tar of another program"):
        Outputs(store).plan([unit()], form("tar"), Sources())


@pytest.mark.parametrize("to", ALL)
@pytest.mark.parametrize("settings", [{}, {"size": 320}])
def test_a_damaged_record_lets_no_file_of_another_program_go(
    tmp_path: Path, to: str, settings: dict[str, object]
) -> None:
    store, made = open_store("out", tmp_path), form(to)
    shard = f"set/00000{made.suffix}"
    for results in ([good("a")], [bad("a")], []):
        output = UnitOutput(store, form(to), unit(f"set/{len(results)}"))
        for row in results:
            output.add(row)
        output.seal([row.key for row in results])
        store.write(shard, store.read(f"set/{len(results)}{made.suffix}"))
        store.write(".selfment/records/set/00000.json", b"damaged")
        assert Outputs(store).plan([unit()], form(to, **settings), Sources()) == [unit()]
    for content in (b"of another program", tar([("a.png", b"an image")])):
        store.write(shard, content)
        with pytest.raises(ValueError, match=r"`out` must (hold no set/00000\.|be empty, or have)"):
            Outputs(store).plan([unit()], form(to), Sources())


def test_files_go_to_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"`out` must be empty, or have .*: got {tmp_path} with a"):
        Outputs(open_store("out", tmp_path)).plan([unit()], form("files"), Sources())
    store = open_store("out", tmp_path / "out")
    assert Outputs(store).plan([unit("a"), unit("ab/c")], form("files"), Sources())
    sentence = r"`inputs` must not have results in one folder: those of a\.tar and of a/b"
    photo = SourceFile("/photos/a/b.jpg", "a/b.jpg", 100, 5)
    for other in (unit("a/b"), Unit("files-1", "files", (photo,))):
        assert Outputs(store).plan([unit("a"), other], form("tar"), Sources())
        with pytest.raises(ValueError, match=sentence):
            Outputs(store).plan([unit("a"), other], form("files"), Sources())


def test_results_of_another_input_with_the_same_name_stay(tmp_path: Path) -> None:
    store, made = open_store("out", tmp_path), form("tar")
    output = UnitOutput(store, made, unit())
    output.add(good("a"))
    output.seal(["a"])
    moved = SourceFile("/elsewhere/set/00000.tar", "set/00000.tar", 10240, 5)
    assert Outputs(store).plan([Unit("set/00000", "tar", (moved,))], made, Sources()) == []
    other = SourceFile("/elsewhere/set/00000.tar", "set/00000.tar", 20480, 5)
    sentence = (
        r"`out` must have no results of another input: set/00000\.tar is of /data/set/00000\.tar, "
        r"and would be of /elsewhere/set/00000\.tar"
    )
    with pytest.raises(ValueError, match=sentence):
        Outputs(store).plan([Unit("set/00000", "tar", (other,))], made, Sources())


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    store, made = open_store("out", tmp_path / "out"), form("tar")
    do(store, made, photos(tmp_path / "in", "a"))
    names = [f"{folder}/.{'0' * 32}.tmp" for folder in (".selfment/records", ".selfment/parts/a")]
    for name in names:
        store.write(name, b"half")
        os.utime(tmp_path / "out" / name, (0, 0))
    do(store, made, photos(tmp_path / "in", "b"))
    assert not any(name.endswith(".tmp") for name in contents(store))


def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Returns two folders in which images have the same names."""
    return photos(tmp_path / "a", "12", time=5), photos(tmp_path / "b", "123", time=6)


def test_results_of_images_that_exist_elsewhere_are_kept(tmp_path: Path) -> None:
    store, made = open_store("out", tmp_path / "out"), form("tar")
    first, second = folders(tmp_path)
    do(store, made, first)
    before = contents(store)
    do(store, made, second)
    assert before.items() <= contents(store).items()
    assert do(store, made, first) == []


def test_files_of_images_that_exist_elsewhere_are_not_replaced(tmp_path: Path) -> None:
    store, made = open_store("out", tmp_path / "out"), form("files")
    first, second = folders(tmp_path)
    do(store, made, first)
    before = contents(store)
    rule = f"`out` must have no results of another input: 1.jpg is of {first}/1.jpg, and would be"
    with pytest.raises(ValueError, match=rule):
        do(store, made, second)
    assert contents(store) == before
    shutil.rmtree(first)
    assert sorted(do(store, made, second)) == ["1", "2", "3"]


def test_a_shard_and_an_earlier_one_in_its_folder_are_not_mixed(tmp_path: Path) -> None:
    store, made = open_store("out", tmp_path / "out"), form("files")
    UnitOutput(store, made, unit("n/a")).seal([])
    with pytest.raises(ValueError, match=r"in one folder: those of n/a\.tar and of n/a/b\.tar"):
        Outputs(store).plan([unit("n/a/b")], made, Sources())


def test_files_do_not_replace_those_of_others_beside_tar_files(tmp_path: Path) -> None:
    store = open_store("out", tmp_path / "out")
    UnitOutput(store, form("tar"), unit("0")).seal([])
    store.write("0/x.png", b"of another program")
    with pytest.raises(ValueError, match=r"`out` must be empty, or have .* got .*/out with 0$"):
        Outputs(store).plan([unit("0")], form("files"), Sources())
    store.remove(["0/x.png"])
    assert Outputs(store).plan([unit("0")], form("files"), Sources()) == [unit("0")]
