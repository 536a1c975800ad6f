"""Rows of Parquet files and of the Arrow files of `datasets`: columns, keys, damage, skips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.shards import image, put, rows_of
from selfment.shards import table_reader
from selfment.shards.readers import ShardError
from selfment.shards.rows import Row

pa = pytest.importorskip("pyarrow", reason="no PyArrow: pip install 'selfment[shards]'")
parquet = pytest.importorskip("pyarrow.parquet")

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FORMATS = ["parquet", "arrow", "stream.arrow"]


def write(path: Path, columns: dict[str, Any], group: int = 3) -> Path:
    """Writes a table in the format of the file's suffix, with groups of some rows."""
    table = pa.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=group)
        return path
    kind = pa.ipc.new_stream if ".stream" in path.suffixes else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, kind(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=group)
    return path


def structs(*rows: tuple[bytes | None, str | None] | None) -> Any:
    values = [None if row is None else {"bytes": row[0], "path": row[1]} for row in rows]
    return pa.array(values, STRUCT)


def numbered(count: int) -> list[Row]:
    return [Row(f"{n:09d}", f"{n:09d}", image(n)) for n in range(count)]


def until_error(rows: Iterator[Row]) -> tuple[list[Row], str]:
    found: list[Row] = []
    try:
        found.extend(rows)  # keeps the rows before an error
    except ShardError as error:
        return found, str(error)
    return found, ""


@pytest.mark.parametrize("layout", ["parquet", "disk"])
def test_tables_of_datasets_are_read(tmp_path: Path, layout: str) -> None:
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": image(n), "path": f"sub/{n}.png"} for n in range(5)]
    others = [{"bytes": b"x", "path": None}] * 5  # a struct that is no image for `datasets`
    features = datasets.Features(
        {
            "other": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "picture": datasets.Image(),
        }
    )
    table = datasets.Dataset.from_dict({"picture": images, "other": others}, features=features)
    if layout == "parquet":
        table.to_parquet(str(tmp_path / "set/train.parquet"))
    else:
        table.save_to_disk(str(tmp_path / "set"))
    sub = "sub/" if layout == "parquet" else ""  # it saves the base names alone
    found = list(rows_of(tmp_path / "set"))
    assert found == [Row(f"{sub}{n}", f"{sub}{n}.png", image(n)) for n in range(5)]


@pytest.mark.parametrize("ending", FORMATS)
def test_a_binary_column_is_read_and_rows_are_numbered(tmp_path: Path, ending: str) -> None:
    columns = {"label": list(range(8)), "img": [image(n) for n in range(8)]}
    assert list(rows_of(write(tmp_path / f"a.{ending}", columns))) == numbered(8)


@pytest.mark.parametrize("ending", FORMATS)
def test_an_object_is_read(tmp_path: Path, bucket: str, ending: str) -> None:
    path = write(tmp_path / f"a.{ending}", {"img": [image(n) for n in range(8)]})
    put(bucket, path.name, path.read_bytes())
    assert list(rows_of(f"{bucket}/{path.name}")) == numbered(8)


@pytest.mark.parametrize("ending", FORMATS)
def test_images_without_bytes(tmp_path: Path, ending: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/b.png").write_bytes(image(1))
    values = structs((image(0), "a.png"), (None, "photos/b.png"), (None, "c.png"), None)
    found = list(rows_of(write(tmp_path / f"a.{ending}", {"image": values})))
    assert [(row.name, row.data) for row in found] == [
        ("a.png", image(0)),
        ("photos/b.png", image(1)),
        ("c.png", b""),
        ("000000003", b""),
    ]
    missing = f"its image has no bytes but a path: No such file: {tmp_path}/c.png"
    assert [row.error for row in found] == [None, None, missing, "its image is null"]
    [row] = rows_of(write(tmp_path / f"b.{ending}", {"image": structs((None, None))}))
    assert row.error == "its image has no bytes"


@pytest.mark.parametrize(
    ("paths", "keys"),
    [
        (["a/x.png", "b/x.jpg", "c.png"], ["a/x", "b/x", "c"]),
        (["a.png", "a.jpg", "b.png"], ["a.png", "a.jpg", "b"]),
        (["a.png", "a.png", "b.png"], None),
        (["a.png", None, "b.png"], None),
        (["a.png", "/b.png", "c.png"], None),
    ],
)
def test_paths_are_keys_if_each_row_has_its_own(
    tmp_path: Path, paths: list[str | None], keys: list[str] | None
) -> None:
    values = structs(*((image(0), path) for path in paths))
    found = list(rows_of(write(tmp_path / "a.parquet", {"image": values})))
    assert [row.key for row in found] == (keys or [f"{n:09d}" for n in range(3)])
    assert [row.name for row in found] == [
        path or row.key for path, row in zip(paths, found, strict=True)
    ]
    assert not any(row.error for row in found)


def test_a_column_has_the_keys(tmp_path: Path) -> None:
    columns = {
        "image": structs(*((image(n), f"{n}.png") for n in range(4))),
        "__key__": ["c", "b", "c", None],
        "number": [7, 8, 9, 10],
    }
    path = write(tmp_path / "a.parquet", columns)
    found = list(rows_of(path))
    assert [(row.key, row.name, row.error) for row in found] == [
        ("c", "0.png", None),
        ("b", "1.png", None),
        ("row-000000002", "2.png", "an earlier row of the shard has its key 'c'"),
        ("row-000000003", "3.png", "it has no key"),
    ]
    assert [row.data for row in found] == [image(0), image(1), b"", b""]
    assert [row.key for row in rows_of(path, key_column="number")] == ["7", "8", "9", "10"]


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"a": [1], "b": [2]}, {}, "no column has images: its columns are a, b"),
        (
            {"a": [b"1"], "b": [b"2"]},
            {},
            "several columns may have the images, a, b: choose one by `column`",
        ),
        ({"a": [b"1"]}, {"column": "x"}, "it has no column 'x': its columns are a"),
        (
            {"a": [b"1"], "t": ["text"]},
            {"column": "t"},
            "its column 't' of images must be binary or a struct with bytes: it is string",
        ),
        ({"a": [b"1"]}, {"key_column": "x"}, "it has no column 'x': its columns are a"),
        (
            {"a": [b"1"], "k": [0.5]},
            {"key_column": "k"},
            "its column 'k' of keys must be text or integers: it is double",
        ),
    ],
)
def test_columns_that_do_not_fit_are_listed(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, str], sentence: str
) -> None:
    path = write(tmp_path / "t.parquet", columns)
    assert until_error(rows_of(path, **options)) == ([], f"cannot read {path}: {sentence}")


def test_a_column_is_chosen_among_several(tmp_path: Path) -> None:
    columns = {"a": [image(0)], "b.c": [image(1)], "s": structs((image(2), None))}
    for ending in FORMATS:
        path = write(tmp_path / f"t.{ending}", columns)
        assert [next(rows_of(path, column)).data for column in columns] == [
            image(0),
            image(1),
            image(2),
        ]
        assert next(rows_of(path)).data == image(2)  # the only struct


@pytest.mark.parametrize("ending", FORMATS)
def test_a_table_cannot_read_files_elsewhere(tmp_path: Path, ending: str) -> None:
    """An absolute path into the folder of the table is what `datasets` may write."""
    for name in ("set/in.png", "set-2/out.png", "out.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image(1))
    inside = f"{tmp_path}/set/in.png"
    others = [f"{tmp_path}/out.png", "../out.png", "../set-2/out.png", "sub/../../out.png", "."]
    values = structs(*((None, path) for path in [inside, "x/../in.png", *others, "a\0b.png"]))
    found = list(rows_of(write(tmp_path / f"set/a.{ending}", {"image": values})))
    assert [row.data for row in found] == [image(1), image(1), *[b""] * 6]
    why = "its image has no bytes but a path: "
    elsewhere = [f"{why}{path!r} is not in the folder of the table" for path in others]
    assert [row.error for row in found[2:-1]] == elsewhere
    assert str(found[-1].error).startswith(f"{why}embedded null byte")


def test_datasets_stores_the_images_that_lie_elsewhere(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / f"photos/{number}.png").write_bytes(image(number))
    paths = [f"{tmp_path}/photos/{number}.png" for number in range(3)]
    table = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "set"))
    assert [row.data for row in rows_of(tmp_path / "set")] == [image(n) for n in range(3)]


def test_groups_of_rows_to_skip_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", {"img": [image(n) for n in range(8)]})
    read = []
    groups = table_reader.ParquetTable.groups

    def counted(self: Any, name: str) -> Iterator[Any]:
        for number, (length, call) in enumerate(groups(self, name)):

            def read_one(number: int = number, call: Any = call) -> Iterator[Any]:
                for array in call():
                    read.append(number)
                    yield array

            yield length, read_one

    monkeypatch.setattr(table_reader.ParquetTable, "groups", counted)
    monkeypatch.setattr(table_reader, "_BATCH", 1)
    found = list(rows_of(path, skip=[f"{n:09d}" for n in (0, 1, 2, 4, 5, 6)]))
    assert read == [1, 2, 2]  # nothing is read after the last row of a group
    assert [row.key for row in found] == [row.key for row in numbered(8)]
    assert {n: row.data for n, row in enumerate(found) if row.data} == {3: image(3), 7: image(7)}


@pytest.mark.parametrize("ending", FORMATS)
def test_a_truncated_table_is_an_error_after_its_rows(tmp_path: Path, ending: str) -> None:
    """A stream can be cut between two batches; the other formats have a table at their end."""
    path = write(tmp_path / f"a.{ending}", {"img": [image(n) for n in range(8)]})
    content = path.read_bytes()
    counts = set()
    for length in range(0, len(content), 8):
        path.write_bytes(content[:length])
        found, error = until_error(rows_of(path))
        assert error.startswith(f"cannot read {path}"), length
        assert found == numbered(len(found))
        counts.add(len(found))
    assert counts == ({0, 3, 6, 8} if ending == "stream.arrow" else {0})


def test_a_damaged_page_is_an_error_after_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"img": [image(n) for n in range(8)]})
    parquet.write_table(table, path, row_group_size=3, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    place = content.index(image(6)) - 4  # the length of a value
    content[place : place + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)
    found, error = until_error(rows_of(path))
    assert found == numbered(6)
    assert error.startswith(f"cannot read {path} after 6 rows: ")
