"""The temporary folder in which a shard is put together: one that is full or gone is named."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest

from helpers.shard_rows import ALL, form, good, unit
from selfment.shards.stores import open_store
from selfment.shards.unit_output import UnitOutput


def full(*_: object) -> None:
    """Raises what writing to a full disk raises: there is no name of a file in it."""
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("to", ALL)
def test_a_temporary_folder_that_is_full_or_gone_is_named(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, made, folder = open_store("out", tmp_path / "out"), form(to), tmp_path / "tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    shard = f"{store.text}/set/00000{made.suffix}"
    words = f"while {shard} is put together in the temporary folder \\(TMPDIR\\)"
    folder.mkdir()
    output = UnitOutput(store, made, unit())
    output.add(good("a"))
    with monkeypatch.context() as patch:
        patch.setattr(type(made), "write", full)
        with pytest.raises(OSError, match=f"No space left on device, {words}") as caught:
            output.seal(["a"])
    assert str(caught.value.filename).startswith(f"{folder}/")
    folder.rmdir()
    with pytest.raises(FileNotFoundError, match=f"No such file or directory, {words}"):
        output.seal(["a"])
    folder.mkdir()
    again = UnitOutput(store, made, unit())
    assert again.done == {"a"}  # what was done is kept
    assert again.seal(["a"]).rows == 1


def test_errors_of_the_output_folder_name_their_own_file(tmp_path: Path) -> None:
    (tmp_path / "set/00000.tar").mkdir(parents=True)
    output = UnitOutput(open_store("out", tmp_path), form("tar"), unit())
    output.add(good("a"))
    with pytest.raises(OSError, match="Is a directory") as caught:
        output.seal(["a"])
    assert "TMPDIR" not in str(caught.value)
