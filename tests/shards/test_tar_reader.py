"""Rows of tar files: WebDataset's samples, damage, and members that are no image."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.shards import image, rows_of, tar
from selfment.shards.readers import ShardError
from selfment.shards.rows import Row
from selfment.shards.tar_reader import known_tar_rows, tar_rows
from selfment.util.words import count_of


def rows(folder: Path, content: bytes, name: str = "shard.tar", **options: object) -> list[Row]:
    (folder / name).write_bytes(content)
    return list(rows_of(folder / name, **options))  # type: ignore[arg-type]


def errors(found: list[Row]) -> list[tuple[str, str | None]]:
    return [(row.key, row.error) for row in found]


def test_samples_of_webdataset_are_read_in_order(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "%05d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(4):
            sample = {"__key__": f"{number:05d}", "jpg": image(number, "JPEG")}
            writer.write({**sample, "json": {"caption": "a.jpg"}, "txt": "a text"})
    found = list(rows_of(tmp_path))
    assert found == [
        Row(f"{number:05d}", f"{number:05d}.jpg", image(number, "JPEG")) for number in range(4)
    ]


@pytest.mark.parametrize("name", ["shard.tar.gz", "shard.tgz"])
def test_compressed_files_are_read(tmp_path: Path, name: str) -> None:
    content = tar((f"a/{number}.png", image(number)) for number in range(3))
    found = rows(tmp_path, gzip.compress(content), name)
    assert found == [Row(f"a/{n}", f"a/{n}.png", image(n)) for n in range(3)]
    with pytest.raises(ShardError, match=r"^cannot read .*gz after [12] rows: "):
        rows(tmp_path, gzip.compress(content)[:-40], name)


def test_the_key_ends_before_the_first_dot_of_the_base_name(tmp_path: Path) -> None:
    names = ["./a.b/c.d.PNG", "./a.b/.hidden.png", "__pycache__x/e.Jpg", "no_suffix", "f.txt.png"]
    found = rows(tmp_path, tar((name, image(1)) for name in names))
    assert [(row.key, row.name) for row in found] == [
        ("a.b/c", "a.b/c.d.PNG"),
        ("__pycache__x/e", "__pycache__x/e.Jpg"),
        ("f", "f.txt.png"),
    ]


def test_a_sample_has_one_image(tmp_path: Path) -> None:
    content = tar(
        [
            *[("a.input.png", image(1)), ("a.json", b"{}"), ("a.target.png", image(2))],
            *[("b.json", b"{}"), ("b.txt", b"text")],
            *[("c.jpg", image(3, "JPEG"))],
        ]
    )
    assert errors(rows(tmp_path, content)) == [
        ("a", "several images (input.png, target.png): name one by `column`"),
        ("b", "no image in the sample 'b'"),
        ("c", None),
    ]
    found = rows(tmp_path, content, column=".Target.png")
    assert [row.data for row in found] == [image(2), b"", b""]
    assert errors(found)[1:] == [
        ("b", "no member .target.png in the sample 'b'"),
        ("c", "no member .target.png in the sample 'c'"),
    ]


def test_a_key_that_is_used_again_is_an_error(tmp_path: Path) -> None:
    found = rows(tmp_path, tar((f"{key}.png", image(1)) for key in "aba"))
    assert errors(found) == [
        ("a", None),
        ("b", None),
        ("row-000000002", "an earlier row of the shard has its key 'a'"),
    ]
    assert found[2].name == "a.png"


@pytest.mark.parametrize("key", ["../a", "/a", "a//b", "a/./b", "a" * 201, "\udcff"])
def test_a_key_that_cannot_be_a_file_is_an_error(tmp_path: Path, key: str) -> None:
    found = rows(tmp_path, tar([("b.png", image(1)), (f"{key}.png", image(2))]))
    assert [row.key for row in found] == ["b", "row-000000001"]
    assert found[1].error is not None
    assert found[1].error.startswith("its key must be ")
    assert found[1].data == b""
    found[1].name.encode()


def test_links_pipes_and_devices_are_errors(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"link{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("photo.png")
        member.size = len(image(0))
        archive.addfile(member, io.BytesIO(image(0)))
    found = rows(tmp_path, file.getvalue())
    assert errors(found) == [
        *((f"link{n}", f"link{n}.png is a link, which a stream cannot follow") for n in (2, 1)),
        *((f"link{n}", f"link{n}.png is a pipe or a device") for n in (6, 3)),
        ("photo", None),
    ]


def test_a_shard_without_any_image_is_one_sentence(tmp_path: Path) -> None:
    content = tar((f"{number}.txt", b"a text") for number in range(3))
    with pytest.raises(ShardError, match=r"none of its 3 rows has an image: no image in .* '0'$"):
        rows(tmp_path, content)
    (tmp_path / "cut.tar").write_bytes(content[:2048])
    found, message = until_error(rows_of(tmp_path / "cut.tar"))
    assert [row.key for row in found] == ["0"]
    assert "after 1 row: " in message


def test_rows_to_skip_have_no_data(tmp_path: Path) -> None:
    content = tar((f"{number}.png", image(number)) for number in range(4))
    found = rows(tmp_path, content, skip=("1", "3"))
    assert [row.data for row in found] == [image(0), b"", image(2), b""]
    assert errors(found) == [(str(number), None) for number in range(4)]


def until_error(rows: Iterator[Row]) -> tuple[list[Row], str]:
    found: list[Row] = []
    try:
        found.extend(rows)  # keeps the rows before an error
    except ShardError as error:
        return found, str(error)
    return found, ""


def test_a_truncated_file_has_the_rows_before_the_cut(tmp_path: Path) -> None:
    """No cut is taken for the end, also not one between two members."""
    members = [(f"{number}.{kind}", image(number)) for number in range(4) for kind in ("png", "x")]
    content = tar(members)
    end = content.rstrip(b"\0")
    ends = [offset for offset in range(0, len(content), 512) if offset > len(end)]
    path = tmp_path / "cut.tar"
    for length in range(0, len(content), 512):
        path.write_bytes(content[:length])
        found, error = until_error(rows_of(path))
        whole = length // 512 // 2  # a header and a block of content
        assert found == [Row(str(n), f"{n}.png", image(n)) for n in range(min(4, (whole + 1) // 2))]
        if length > ends[0]:
            assert error == ""
        else:
            after = f" after {count_of(len(found), 'row')}" if found else ""
            assert error.startswith(f"cannot read {path}{after}: "), length


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    content = bytearray(tar((f"{number}.png", image(number)) for number in range(3)))
    content[2048 : 2048 + 8] = b"damaged!"
    (tmp_path / "bad.tar").write_bytes(content)
    found, error = until_error(rows_of(tmp_path / "bad.tar"))
    assert [row.key for row in found] == ["0", "1"]
    assert error == f"cannot read {tmp_path}/bad.tar after 2 rows: bad checksum"


def test_a_file_that_is_no_tar_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_bytes(b"text" * 500)
    (tmp_path / "empty.tar").write_bytes(b"")
    for name in ("text", "empty"):
        found, error = until_error(rows_of(tmp_path / f"{name}.tar"))
        assert found == []
        assert error.startswith(f"cannot read {tmp_path}/{name}.tar: ")
    assert error.endswith("it ends without an end mark")


def test_an_object_is_streamed(bucket: str) -> None:
    from helpers.shards import put

    content = tar((f"{number}.png", image(number)) for number in range(3))
    put(bucket, "a/b c.tar", content)
    assert list(rows_of(f"{bucket}/a/b c.tar")) == [
        Row(str(n), f"{n}.png", image(n)) for n in range(3)
    ]
    put(bucket, "a/cut.tar", content[:2048])
    found, error = until_error(rows_of(f"{bucket}/a/cut.tar"))
    assert len(found) == 2
    assert error == f"cannot read {bucket}/a/cut.tar after 2 rows: it ends without an end mark"


@pytest.mark.parametrize("column", [None, "png"])
def test_rows_are_read_alone_as_in_the_whole_shard(column: str | None) -> None:
    """Long names, keys that are used twice or cannot be files, and samples without an image."""
    names = ["a.png", "a.txt", "b.png", "x/" * 60 + "c.png", "a.png", "d.txt", "../e.png", "f.png"]
    content = tar((name, image(number)) for number, name in enumerate(names))
    whole = list(tar_rows(io.BufferedReader(io.BytesIO(content)), column, ()))  # type: ignore[arg-type]
    assert [row.error is None for row in whole] == [True, True, True, False, False, False, True]
    assert all(row.start is not None for row in whole)
    for wanted in whole:
        skip = {row.key for row in whole} - {wanted.key}
        starts = {row.key: None if row.key in skip else row.start for row in whole}
        file = io.BufferedReader(io.BytesIO(content))  # type: ignore[arg-type]
        found = list(known_tar_rows(file, column, skip, starts))
        assert [row.key for row in found] == [row.key for row in whole]
        assert next(row for row in found if row.key == wanted.key) == wanted
        assert not any(row.data for row in found if row.key != wanted.key)


def test_only_the_bytes_of_a_row_are_read() -> None:
    content = tar((f"{number}.png", image(number)) for number in range(100))

    class Counting(io.BytesIO):
        count = 0

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            self.count += len(buffer)
            return super().readinto(buffer)

    whole = list(tar_rows(io.BytesIO(content), None, ()))
    file = Counting(content)
    keys = {row.key: row.start if row.key == "70" else None for row in whole}
    rows = known_tar_rows(io.BufferedReader(file, 512), None, keys.keys() - {"70"}, keys)  # type: ignore[type-var]
    assert {row.key for row in rows if row.data} == {"70"}
    assert file.count < len(content) / 4


def test_a_sample_that_is_no_longer_where_it_was_is_an_error() -> None:
    content = tar((f"{number}.png", image(number)) for number in range(3))
    with pytest.raises(tarfile.ReadError, match="it has no longer the sample 'gone' at byte 0"):
        list(known_tar_rows(io.BytesIO(content), None, (), {"gone": 0}))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_rows_of_compressed_files_cannot_be_read_alone(pack: Callable[[bytes], bytes]) -> None:
    content = pack(tar((f"{number}.png", image(number)) for number in range(3)))
    assert [row.start for row in tar_rows(io.BytesIO(content), None, ())] == [None] * 3
