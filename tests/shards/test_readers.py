"""Rows of image files, and how a unit is read on each kind of file system."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from helpers.shards import image, rows_of, tar, units_of
from selfment.shards.readers import read_unit
from selfment.shards.rows import Row
from selfment.shards.store import Store
from selfment.shards.stores import LocalStore


def test_image_files_are_rows_in_their_order(store: Store) -> None:
    for number in range(40):
        store.write(f"photos/{number:02d}.png", image(number))
    store.write("photos/07.gif", image(7, "GIF"))
    url = f"{store.uri}/photos"
    found = list(rows_of(url, skip=["03"]))
    names = [f"{n:02d}.png" for n in range(40)]
    names.insert(7, "07.gif")
    assert [row.name for row in found] == names
    assert [row.key for row in found] == [n if n[:2] == "07" else n[:2] for n in names]
    assert found[0] == Row("00", "00.png", image(0))
    assert found[3] == Row("03", "03.png")
    assert all(row.data for row in found if row.key != "03")


def test_a_shard_is_read_on_each_file_system(store: Store) -> None:
    store.write("a.tar", tar((f"{n}.png", image(n)) for n in range(3)))
    assert [row.data for row in rows_of(f"{store.uri}/a.tar")] == [image(n) for n in range(3)]


def test_a_file_that_is_gone_is_an_error_of_its_row(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(image(number))
    [unit], sources = units_of(tmp_path)
    (tmp_path / "1.png").unlink()
    found = list(read_unit(unit, sources))
    assert [row.error for row in found] == [
        None,
        f"cannot read {tmp_path}/1.png: No such file",
        None,
    ]


def test_an_unfinished_pass_leaves_no_thread_and_few_files_are_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        (tmp_path / f"{number:02d}.png").write_bytes(image(number))
    read: list[str] = []
    original = LocalStore.read
    monkeypatch.setattr(LocalStore, "read", lambda *a: [read.append(a[1]), original(*a)][1])
    [unit], sources = units_of(tmp_path)
    rows = read_unit(unit, sources)
    assert [next(rows).key for _ in range(5)] == [f"{n:02d}" for n in range(5)]
    rows.close()
    assert len(read) <= 5 + 16
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("ThreadPoolExecutor") for name in names)
