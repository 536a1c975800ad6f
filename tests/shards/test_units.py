"""Units: what inputs name on each kind of file system, what is left out, and groups of images."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.shard_rows import form
from helpers.shards import put, units_of
from selfment.shards.outputs import Outputs
from selfment.shards.readers import ShardError, read_unit
from selfment.shards.rows import Unit
from selfment.shards.sources import Sources
from selfment.shards.store import Store
from selfment.shards.stores import open_store
from selfment.util.lines import with_checksum

SHARDS = ["a/00.tar", "a/01.tar", "a/02.tar.gz", "b/00.tar", "b/c/00.parquet"]
RECORD = with_checksum('{"image": "a.jpg", "settings": "0"}').encode() + b"\n"


@pytest.fixture
def shards(store: Store) -> Store:
    for name in SHARDS:
        store.write(name, b"content")
    return store


def names(url: str, **options: object) -> list[str]:
    units, _ = units_of(url, **options)  # type: ignore[arg-type]
    return [unit.name for unit in units]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ["a/00", "a/01", "a/02", "b/00", "b/c/00"]),
        ("/", ["a/00", "a/01", "a/02", "b/00", "b/c/00"]),
        ("/a", ["00", "01", "02"]),
        ("/a/00.tar", ["00"]),
        ("/a/0[01].tar", ["00", "01"]),
        ("/a/*", ["00", "01", "02"]),
        ("/a/0?.tar", ["00", "01"]),
        ("/a/{00..01}.tar", ["00", "01"]),
        ("/{b,a}/0{0,1}*.tar", None),
        ("/{a,b}/00.tar", ["a/00", "b/00"]),
        ("/*/00.tar", ["a/00", "b/00"]),
        ("/*", ["a/00", "a/01", "a/02", "b/00", "b/c/00"]),
        ("/**/*.parquet", ["b/c/00"]),
        ("/**", ["a/00", "a/01", "a/02", "b/00", "b/c/00"]),
        ("/**/00.*", ["a/00", "b/00", "b/c/00"]),
        ("/b/**/00.*", ["00", "c/00"]),
    ],
)
def test_folders_globs_and_braces(shards: Store, pattern: str, found: list[str] | None) -> None:
    url = f"{shards.uri}{pattern}"
    if found is None:
        with pytest.raises(ValueError, match=r"no shard or image matches '.*/b/01\*\.tar'"):
            units_of(url)
        return
    assert names(url) == found


def test_units_are_shards_with_their_size_and_place(shards: Store) -> None:
    units, sources = units_of(shards.uri)
    files = shards.list()
    assert [unit.kind for unit in units] == ["tar", "tar", "tar", "tar", "parquet"]
    assert [unit.files for unit in units] == [(replace(file),) for file in files]
    there, name = sources.locate(units[0].files[0])
    assert there.read(name) == b"content"


def test_names_that_would_be_equal_keep_their_suffix(tmp_path: Path) -> None:
    for name in ("a.tar", "a.arrow", "a.tar.gz", "b.tar"):
        (tmp_path / name).touch()
    assert names(str(tmp_path)) == ["a.arrow", "a.tar", "a.tar.gz", "b"]


@pytest.mark.parametrize("pattern", ["", "/*", "/**", "/*.parquet"])
@pytest.mark.parametrize("images", ["{}.tar", "{}/{}0001.jpg"])
def test_tables_that_describe_images_are_left_out(
    store: Store, capsys: pytest.CaptureFixture[str], pattern: str, images: str
) -> None:
    """In folders as img2dataset writes them."""
    for shard in ("00000", "00001"):
        for name in (images.format(shard, shard), f"{shard}.parquet", f"{shard}_stats.json"):
            store.write(f"set/{name}", b"content")
    url = f"{store.uri}/set{pattern}"
    if pattern == "/*.parquet":  # by themselves
        assert names(url) == ["00000", "00001"]
        return
    units, _ = units_of(url)
    kind = "tar" if images == "{}.tar" else "files"
    assert {unit.kind for unit in units} == {kind}
    assert [file.name for unit in units for file in unit.files] == [
        images.format(shard, shard) for shard in ("00000", "00001")
    ]
    tables = " and ".join(store.text_of(f"set/{shard}.parquet") for shard in ("00000", "00001"))
    said = capsys.readouterr().err
    why = "because a tar file or folder of images has the same name"
    assert f"2 tables were left out {why}: {tables}" in said.replace(", ", " and ")
    assert "2 files were left out: 2 of no kind that is read (.json)" in said


def test_several_inputs_share_their_names(shards: Store) -> None:
    units, _ = units_of([f"{shards.uri}/b", f"{shards.uri}/a/*.tar", f"{shards.uri}/b/00.tar"])
    assert [unit.name for unit in units] == ["b/00", "b/c/00", "a/00", "a/01"]


def test_a_shard_that_several_links_reach_is_one_unit(tmp_path: Path) -> None:
    folder = open_store("out", tmp_path / "in")
    folder.write("0.tar", b"content")
    for link in ("one", "two"):
        (tmp_path / link).symlink_to("in")
    inputs = [tmp_path / "in/0.tar", tmp_path / "one/0.tar", tmp_path / "two", tmp_path / "in"]
    assert [unit.name for unit in units_of(inputs)[0]] == ["in/0"]
    [unit] = units_of([inputs[1], inputs[1]])[0]
    assert unit.files[0].uri == f"{tmp_path}/one/0.tar"
    for to in (tmp_path / "in", tmp_path / "two"):
        with pytest.raises(ValueError, match="`out` must not be where results replace inputs: "):
            Outputs(open_store("out", to)).plan([unit], form("tar"), Sources())


def test_shards_and_images_of_one_folder_are_named_separately(shards: Store) -> None:
    shards.write("a/x.jpg", b"")
    text = shards.text_of("a")
    with pytest.raises(ValueError, match="has both shards, 3, and images, 1: name them") as caught:
        units_of(f"{shards.uri}/a")
    assert str(caught.value).startswith(f"{text!r} has both")
    units, _ = units_of([f"{shards.uri}/a/*.tar", f"{shards.uri}/a/*.jpg"])
    assert [unit.kind for unit in units] == ["tar", "tar", "files"]


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("/none", "no such file or folder: '?.*/none"),
        ("/a/none.tar", "no such file or folder: .*/a/none.tar"),
        ("/a/{00..09}.tar", "no such file or folder: .*/a/02.tar, .*/a/04.tar and 5 more"),
        ("/none/*.tar", r"no shard or image matches '.*/none/\*\.tar'"),
        ("/a/*.zip", r"no shard or image matches '.*/a/\*\.zip'"),
        ("/d", r"has no shard and no image: 1 file was left out: 1 of no kind that is read \(.x"),
    ],
)
def test_an_input_without_a_shard_is_named(shards: Store, pattern: str, sentence: str) -> None:
    shards.write("d/e.xml", b"")
    with pytest.raises(ValueError, match=sentence):
        units_of(f"{shards.uri}{pattern}")


def test_what_is_neither_a_file_nor_a_folder(tmp_path: Path) -> None:
    (tmp_path / "loop.tar").symlink_to("loop.tar")
    (tmp_path / "gone.tar").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo.tar")
    for name in ("loop.tar", "gone.tar", "fifo.tar"):
        with pytest.raises(ValueError, match=f"^neither a file nor a folder: {tmp_path}/{name}$"):
            units_of(tmp_path / name)
    units, sources = units_of(tmp_path)
    assert [unit.name for unit in units] == ["fifo", "gone", "loop"]
    for unit in units:
        with pytest.raises(ShardError, match=f"^cannot read {unit.files[0].uri}: "):
            list(read_unit(unit, sources))
    for url in ("in\0x", "s3://bucket/in\0x"):
        with pytest.raises(ValueError, match="`inputs` must be a path or a URL without NUL: got"):
            units_of(url)


def test_what_is_left_out_is_said(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    left_out = ["_SUCCESS", "00_stats.json", "00.tar.crc", "dataset_info.json"]
    working = ["_temporary/0/p.parquet", "_metadata.parquet", "cache-0a.arrow"]
    hidden = [".hidden.tar", ".git/x.tar"]
    for name in ("00.tar", *left_out, *working, *hidden):
        store.write(name, b"")
    assert names(store.uri) == ["00"]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "3 shards were left out, which are caches or unfinished by their names: "
    )
    assert "_metadata.parquet" in first
    assert "_temporary/0/p.parquet" in first
    assert second == (
        "4 files were left out: 4 of no kind that is read (.json, without a suffix, .crc)"
    )


def test_results_of_earlier_runs_are_not_inputs(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "labels.jsonl", "d/labels.jsonl", "d/b.jpg"):
        store.write(name, b"{}\n")  # the user's own
    for name in ("run/a.png", "runs/1/a.tar", "runs/2/files-0.jsonl", "runs/2/a/b.png"):
        store.write(name, b"")
    store.write("run/labels.jsonl", RECORD)
    store.write("runs/1/.selfment/records/a.json", b"")
    store.write("runs/2/.selfment/records/files-0.json", b"")
    store.write("e/.selfment/records/c.json", b"")  # a record of nothing
    store.write("e/c.jpg", b"")
    [unit], _ = units_of(store.uri)
    assert [file.name for file in unit.files] == ["a.jpg", "d/b.jpg", "e/c.jpg"]
    said = capsys.readouterr().err
    assert said.startswith("3 folders with results of selfment were not searched: ")
    assert all(f"{store.text}/{name}" in said for name in ("run", "runs/1", "runs/2"))
    with pytest.raises(
        ValueError,
        match="has no shard and no image: 1 folder with results of selfment was not searched: ",
    ):
        units_of(f"{store.uri}/runs/1")


def test_the_output_folder_is_not_searched(store: Store) -> None:
    store.write("a.tar", b"")
    store.write("out/b.tar", b"")
    out = open_store("out", f"{store.uri}/out")
    assert names(store.uri, out=out) == ["a"]
    assert names(f"{store.uri}/*", out=open_store("out", f"{store.uri}/none")) == ["a", "out/b"]
    for inputs in (f"{store.uri}/out", f"{store.uri}/out/*.tar"):
        with pytest.raises(ValueError, match="`out` must not be a folder that is searched"):
            units_of(inputs, out=out)


def test_a_link_to_the_output_folder_is_not_searched(tmp_path: Path) -> None:
    (tmp_path / "in/out").mkdir(parents=True)
    (tmp_path / "in/out/b.tar").touch()
    (tmp_path / "in/a.tar").touch()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    out = open_store("out", tmp_path / "in/out")
    assert names(str(tmp_path / "link"), out=out) == ["a"]
    with pytest.raises(ValueError, match="`out` must not be"):
        units_of(tmp_path / "link/out", out=out)


def test_relative_paths_and_names_with_the_characters_of_globs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("[a].tar", "{a,b}.tar", "a{b}*.tar"):
        Path(name).touch()
        assert names(name) == [name.removesuffix(".tar")]
    assert names("a{b}?.t*") == ["a{b}*"]
    units, _ = units_of(tmp_path / "[a].tar")
    assert units[0].files[0].uri == str(tmp_path / "[a].tar")


def test_inputs_are_on_one_kind_of_file_system(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "a.tar").touch()
    put(bucket, "b.tar", b"")
    with pytest.raises(ValueError, match="must be on one kind of file system: got paths and s3"):
        units_of([str(tmp_path), bucket])
    with pytest.raises(ValueError, match="`inputs` must name at least one shard or image"):
        units_of([])
    with pytest.raises(ValueError, match="`inputs` must be paths or URLs: got ''"):
        units_of([""])
    with pytest.raises(ValueError, match="`block` must be an integer >= 1: got 0"):
        units_of(bucket, block=0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(7):
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * number)
    return tmp_path


def groups(units: list[Unit]) -> list[list[str]]:
    return [[file.name for file in unit.files] for unit in units]


def test_images_are_grouped_in_their_order(photos: Path) -> None:
    units, _ = units_of(photos, block=3)
    assert groups(units) == [
        ["0.jpg", "1.jpg", "2.jpg"],
        ["3.jpg", "4.jpg", "5.jpg"],
        ["6.jpg"],
    ]
    assert [unit.keys for unit in units] == [("0", "1", "2"), ("3", "4", "5"), ("6",)]
    assert len({unit.name for unit in units}) == 3
    assert all(len(unit.name) == len("files-0123456789ab") for unit in units)
    assert units_of(photos, block=3)[0] == units


def test_earlier_groups_stay_when_files_are_added_changed_or_moved(photos: Path) -> None:
    earlier, _ = units_of(photos, block=3)
    (photos / "00.jpg").touch()
    (photos / "4.jpg").write_bytes(b"changed")
    units, _ = units_of(photos, block=3, earlier=earlier)
    assert groups(units) == [*groups(earlier), ["00.jpg"]]
    assert [unit.name for unit in units[:3]] == [unit.name for unit in earlier]
    assert [file.bytes for file in units[1].files] == [3, len(b"changed"), 5]
    moved = photos.with_name("moved")
    os.rename(photos, moved)
    units, _ = units_of(moved, block=3, earlier=earlier)
    assert groups(units) == [
        ["0.jpg", "1.jpg", "2.jpg"],
        ["3.jpg", "5.jpg"],
        ["6.jpg"],
        ["00.jpg", "4.jpg"],  # changed and moved: it may be another file
    ]
    assert [unit.name for unit in units[:3]] == [unit.name for unit in earlier]
    assert units[0].files[0].uri == str(moved / "0.jpg")
    assert units[0].keys == ("0", "1", "2")


def test_groups_have_the_names_of_their_files_sizes_and_times(photos: Path) -> None:
    [before], _ = units_of(photos)
    os.utime(photos / "0.jpg", ns=(0, 10**18))
    [after], _ = units_of(photos)
    assert before.name != after.name


def test_a_new_group_has_not_the_name_of_one_whose_files_changed_elsewhere(photos: Path) -> None:
    earlier, _ = units_of(photos)
    copy = photos.with_name("copy")
    shutil.copytree(photos, copy)  # with the times
    for path in photos.iterdir():
        path.write_bytes(b"changed")
    changed, _ = units_of(photos, earlier=earlier)
    assert [unit.name for unit in changed] == [unit.name for unit in earlier]
    [unit] = units_of(copy, earlier=changed)[0]
    assert unit.name == f"{earlier[0].name}-"
    assert units_of(copy, earlier=[*changed, unit])[0] == [unit]
