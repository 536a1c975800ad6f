"""Tar files, tables and files: peers read what is written, equal rows make equal bytes."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import shard_rows
from helpers.shard_rows import ALL, LAYOUT, bad, form, good, rows, unit
from selfment.shards.formats import Format, objects_of, output_format, read_tar, write_tar
from selfment.shards.layout import Layout
from selfment.shards.rows import RowResult, Unit
from selfment.shards.store import Store
from selfment.shards.stores import open_store

UNIT = unit()


@pytest.fixture
def out(tmp_path: Path) -> Store:
    return open_store("out", tmp_path / "out")


def seal(store: Store, made: Format, results: list[RowResult], of: Unit = UNIT) -> Path:
    """Writes a sealed shard; returns its file."""
    path = Path(store.text) / f"{of.name}{made.suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    made.write(map(made.layout.normal, results), path, of, store)
    return path


def dataset(*files: Path) -> Any:
    """Returns the table that Hugging Face's library reads."""
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset(
        "parquet",
        data_files=[str(file) for file in files],
        cache_dir=str(files[0].parent / "cache"),
        split="train",
    )


@pytest.mark.parametrize("to", ALL)
def test_rows_are_read_as_they_were_written(out: Store, to: str) -> None:
    made = form(to)
    results = [*rows(250, failed=[0, 7]), good("a/b.c/d%2E.v2", 3), good("naïve \u732b", 4)]
    seal(out, made, results)
    read = list(made.read(out, UNIT))
    assert [row.key for row in read] == [row.key for row in results]
    for row, result in zip(read, results, strict=True):
        expected = LAYOUT.normal(result)
        assert row.record == expected.record
        assert dict(row.files) == dict(expected.files)


def test_tar_files_are_written_and_read_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    peaks = []
    for work in (write_many, read_many):
        tracemalloc.start()
        work(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 1 << 20  # two members for each of the 4,000 rows would take 5 MB


def write_many(path: Path) -> None:
    with path.open("wb") as file:
        write_tar((LAYOUT.normal(good(f"{index:05}", 1)) for index in range(4000)), file, LAYOUT)


def read_many(path: Path) -> None:
    with path.open("rb") as file:
        assert sum(1 for _ in read_tar(file, LAYOUT, "it")) == 4000


@pytest.mark.parametrize("to", ALL)
def test_equal_rows_make_equal_bytes(out: Store, to: str) -> None:
    first = seal(out, form(to), rows(120, failed=[3])).read_bytes()
    # Rows that were read from a shard, as after an interrupt, make the same bytes, too.
    again = list(form(to).read(out, UNIT))
    assert seal(out, form(to), again).read_bytes() == first
    assert seal(out, form(to), rows(120, failed=[3])).read_bytes() == first


@pytest.mark.parametrize("to", ALL)
@pytest.mark.parametrize("results", [[], [bad("0"), bad("1", "kein Bild \u2620")]])
def test_shards_without_results_are_read(out: Store, to: str, results: list[RowResult]) -> None:
    seal(out, form(to), results)
    read = list(form(to).read(out, UNIT))
    assert [(row.key, row.record["error"]) for row in read] == [
        (row.key, row.record["error"]) for row in results
    ]


def test_webdataset_reads_tar_files(out: Store) -> None:
    webdataset = pytest.importorskip("webdataset")
    shard = seal(out, form("tar"), [*rows(5, failed=[2]), good("sub/photo.v2", 9)])
    samples = list(
        webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False).decode("l8")
    )
    keys = [sample["__key__"] for sample in samples]
    assert keys == ["00000", "00001", "00002", "00003", "00004", "sub/photo%2Ev2"]
    assert set(samples[2]) == {"__key__", "__url__", "__local_path__", "json"}
    assert samples[2]["json"]["error"] == "cannot label it: it is no image"
    for number, sample in ((4, samples[4]), (9, samples[5])):
        np.testing.assert_array_equal(sample["png"], shard_rows.mask(number))
        assert sample["overlay.jpg"].shape == (6, 8)
        assert sample["annotations.json"]["annotations"] == [number]
        assert sample["json"]["confidence"] == number / 7
    assert samples[5]["json"]["key"] == "sub/photo.v2"


def test_members_have_no_time_and_no_user(out: Store) -> None:
    shard = seal(out, form("tar"), [good("k" * 180, 1)])
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    assert [member.name[180:] for member in members] == [
        ".png",
        ".overlay.jpg",
        ".annotations.json",
        ".json",
    ]
    for member in members:
        assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
        assert (member.uname, member.gname, member.mode) == ("", "", 0o644)


def test_hugging_face_reads_tables(out: Store) -> None:
    shard = seal(out, form("parquet"), rows(205, failed=[2]))
    failed = seal(out, form("parquet"), [bad("x")], unit("set/00001"))
    table = dataset(shard, failed)
    assert len(table) == 206
    assert table[204]["mask"].size == (8, 6)
    np.testing.assert_array_equal(np.asarray(table[204]["mask"]), shard_rows.mask(204))
    assert table[204]["confidence"] == 204 / 7
    assert table[204]["eigenvalues"] == [68.0, 1.0]
    assert table[204]["notes"] == ["Übergröße"]
    assert json.loads(table[204]["annotations"])["annotations"] == [204]
    assert table[2]["mask"] is None
    assert table[2]["error"] == table[205]["error"] == "cannot label it: it is no image"
    assert str(table.features["mask"]) == "Image(mode=None, decode=True)"


def test_tables_have_one_schema_and_small_row_groups(out: Store) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    schemas = []
    for number, results in enumerate(([], [bad("x")], rows(205))):
        shard = seal(out, form("parquet"), results, unit(str(number)))
        schemas.append(parquet.read_schema(shard))
    assert schemas[0].equals(schemas[1], check_metadata=True)
    assert schemas[0].equals(schemas[2], check_metadata=True)
    about = json.loads(schemas[0].metadata[b"selfment"])
    assert about == {"settings": shard_rows.SETTINGS, "digest": form("parquet").digest}
    data = parquet.ParquetFile(shard)
    assert [data.metadata.row_group(n).num_rows for n in range(data.num_row_groups)] == [
        100,
        100,
        5,
    ]
    assert data.metadata.row_group(0).column(0).compression == "ZSTD"


def test_files_lie_where_the_layout_says(out: Store, tmp_path: Path) -> None:
    made, results = form("files"), [good("a", 1), bad("b"), good("sub/c.v2", 2)]
    seal(out, made, results)
    seal(out, made, results, unit("files-1", "files"))
    for folder in ("", "set/00000/"):
        mask = Image.open(tmp_path / f"out/{folder}sub/c.v2.png")
        np.testing.assert_array_equal(np.asarray(mask), shard_rows.mask(2))
        assert (tmp_path / f"out/overlays/{folder}a.jpg").is_file()
        assert (tmp_path / f"out/annotations/{folder}a.json").is_file()
    assert not list((tmp_path / "out").rglob("b.*"))
    lines = (tmp_path / "out/set/00000.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    assert record["files"]["mask"] == "set/00000/a.png"
    assert json.loads(lines[1])["error"] == "cannot label it: it is no image"
    assert objects_of(out, "files-1.jsonl") == [
        "files-1.jsonl",
        *("a.png", "overlays/a.jpg", "annotations/a.json"),
        *("sub/c.v2.png", "overlays/sub/c.v2.jpg", "annotations/sub/c.v2.json"),
    ]


def test_files_that_are_gone_or_cut_off_count_for_nothing(out: Store, tmp_path: Path) -> None:
    made = form("files")
    shard = seal(out, made, rows(6))
    assert made.is_intact(out, UNIT, 6)
    (tmp_path / "out/set/00000/00001.png").unlink()
    (tmp_path / "out/overlays/set/00000/00003.jpg").write_bytes(b"")
    lines = shard.read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace("00004.jpg", "00009.jpg")
    shard.write_text("".join(lines))
    assert not made.is_intact(out, UNIT, 6)
    assert [row.key for row in made.read(out, UNIT)] == ["00000", "00002", "00005"]


@pytest.mark.parametrize("to", ["tar", "parquet"])
def test_damaged_shards_are_an_error(out: Store, to: str) -> None:
    shard = seal(out, form(to), rows(12))
    data = shard.read_bytes()
    for damaged in (data[: len(data) // 2], b"x" * len(data)):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot read .*set/00000\.\w+: it is damaged"):
            assert len(list(form(to).read(out, UNIT))) == 12


def test_records_have_the_fields_and_types_of_the_layout() -> None:
    result = good("a", 1, confidence=1, eigenvalues=[float("nan"), 2], notes=())
    record = LAYOUT.normal(result).record
    assert record["confidence"] == 1.0
    assert isinstance(record["confidence"], float)
    assert record["eigenvalues"] == [None, 2.0]
    assert record["notes"] == []
    assert LAYOUT.normal(good("a", confidence=float("inf"))).record["confidence"] is None
    assert list(LAYOUT.normal(bad("a")).record) == list(record)
    assert LAYOUT.normal(bad("a", "no \udcff")).record["error"] == "no \\udcff"
    with pytest.raises(ValueError, match=r"`record` must have fields of its layout: got \['x'\]"):
        LAYOUT.normal(good("a", x=1))
    with pytest.raises(ValueError, match=r"`files` must be \['annotations', 'mask', 'overlay'\]"):
        LAYOUT.normal(RowResult("a", good("a").record, {"mask": b""}))


def test_layouts_and_formats_are_checked() -> None:
    for endings in ({"a": "png", "b": "png"}, {"a": "json"}):
        with pytest.raises(ValueError, match="`endings` must be different endings"):
            Layout("label", endings, {}, dict)
    with pytest.raises(ValueError, match=r"`numbers` must be 'bool' or .*: got 'float'"):
        Layout("label", {"mask": "png"}, {"x": "float"}, dict)
    with pytest.raises(ValueError, match="`fields` must be different names"):
        Layout("label", {"mask": "png"}, {"mask": "bool"}, dict)
    with pytest.raises(ValueError, match="`to` must be 'tar' or 'parquet' or 'files': got 'zip'"):
        output_format("zip", LAYOUT, {})


def test_the_digest_changes_with_settings_layout_and_format() -> None:
    other = Layout("label", {"mask": "png"}, LAYOUT.numbers, LAYOUT.paths)
    digests = {
        *(form(to).digest for to in ALL),
        form("tar", size=320).digest,
        output_format("tar", other, shard_rows.SETTINGS).digest,
    }
    assert len(digests) == 5
    assert form("tar").digest == form("tar").digest


def test_tar_rows_survive_a_stream_that_cannot_seek(out: Store) -> None:
    data = seal(out, form("tar"), rows(3)).read_bytes()

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self._file = io.BytesIO(data)

        def read(self, size: int = -1) -> bytes:
            return self._file.read(min(size, 700))

    out.open = lambda name: Pipe()
    assert len(list(form("tar").read(out, UNIT))) == 3
