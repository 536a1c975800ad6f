"""Units of shards: killed and resumed, retried, changed, damaged; nothing done is lost."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from helpers.shard_rows import ALL, Killed, MortalStore, bad, form, good, rows, unit
from selfment.shards.outputs import Outputs
from selfment.shards.rows import RowResult, Unit
from selfment.shards.sources import Sources
from selfment.shards.store import Store
from selfment.shards.stores import open_store
from selfment.shards.unit_output import UnitOutput
from selfment.shards.unit_record import UnitRecord, read_record

BLOCK = 3


class Run:
    """Runs over units in a folder, as a job does, and counts what is computed."""

    def __init__(self, out: Path | str, to: str, **settings: object) -> None:
        self.store: Any = open_store("out", out)
        self.form = form(to, **settings)
        self.computed: list[str] = []

    def work(
        self, results: Sequence[RowResult], of: Unit, store: Any = None, error: str | None = None
    ) -> UnitRecord:
        """Does a unit; its rows are finished in another order than they are stored in."""
        output = UnitOutput(store or self.store, self.form, of, BLOCK)
        left = [row for row in results if row.key not in output.done]
        random.Random(len(left)).shuffle(left)
        for row in left:
            self.computed.append(row.key)
            output.add(row)
        return output.seal([row.key for row in results], error)

    def files(self) -> dict[str, bytes]:
        """Returns the content of each object."""
        return {file.name: self.store.read(file.name) for file in self.store.list()}

    def is_done(self, of: Unit) -> bool:
        return not Outputs(self.store).plan([of], self.form, Sources())


@pytest.mark.parametrize("to", ALL)
def test_a_run_that_is_killed_anywhere_loses_at_most_one_part(tmp_path: Path, to: str) -> None:
    results = rows(11, failed=[4])
    whole = Run(tmp_path / "whole", to)
    counting = MortalStore(whole.store)
    whole.work(results, unit(), counting)
    assert f"set/00000{whole.form.suffix}" in whole.files()
    for nth in range(len(counting.operations)):
        run = Run(tmp_path / str(nth), to)
        with pytest.raises(Killed):
            run.work(results, unit(), MortalStore(run.store, nth))
        killed = len(run.computed)
        run.work(results, unit())
        assert run.files() == whole.files()
        again = set(run.computed[:killed]).intersection(run.computed[killed:]) - {"00004"}
        assert len(again) <= BLOCK, counting.operations[nth]


@pytest.mark.parametrize("to", ALL)
def test_runs_on_any_file_system_are_killed_and_equal_to_a_local_run(
    tmp_path: Path, store: Store, to: str
) -> None:
    results = rows(11, failed=[4])
    whole = Run(tmp_path / "whole", to)
    whole.work(results, unit())
    for nth in range(1, 40, 13):
        run = Run(f"{store.uri}/{to}{nth}", to)
        with suppress(Killed):
            run.work(results, unit(), MortalStore(run.store, nth))
        run.work(results, unit())
        assert run.files() == whole.files()
        run.work(rows(11), unit())  # reads the sealed shard
        assert run.computed[-1] == "00004"
        assert run.is_done(unit())


@pytest.mark.parametrize("to", ALL)
def test_a_run_that_is_killed_again_and_again_ends(tmp_path: Path, to: str) -> None:
    results = rows(11, failed=[4])
    whole = Run(tmp_path / "whole", to)
    whole.work(results, unit())
    run = Run(tmp_path / "killed", to)
    for nth in range(1, 100):
        try:
            run.work(results, unit(), MortalStore(run.store, nth))
            break
        except Killed:
            continue
    assert run.files() == whole.files()


@pytest.mark.parametrize("to", ALL)
def test_failed_rows_are_tried_again_and_killed_anywhere(tmp_path: Path, to: str) -> None:
    before, after = rows(11, failed=[0, 4, 9]), rows(11, failed=[9])
    whole = Run(tmp_path / "whole", to)
    whole.work(after, unit())
    assert not whole.is_done(unit())
    first = Run(tmp_path / "first", to)
    assert first.work(before, unit()).failed == 3
    nth, is_over = 0, False
    while not is_over:
        folder = tmp_path / str(nth)
        shutil.copytree(tmp_path / "first", folder)
        run = Run(folder, to)
        try:
            record = run.work(after, unit(), MortalStore(run.store, nth))
            assert (record.rows, record.failed) == (11, 1)
            is_over = True
        except Killed:
            run.work(after, unit())
        assert set(run.computed) <= {"00000", "00004", "00009"}
        assert run.files() == whole.files()
        nth += 1
    assert nth > 5


@pytest.mark.parametrize("to", ALL)
def test_rows_that_fail_again_change_nothing(tmp_path: Path, to: str) -> None:
    run = Run(tmp_path, to)
    results = rows(5, failed=[1])
    run.work(results, unit())
    counting = MortalStore(run.store)
    record = run.work(results, unit(), counting)
    assert (record.rows, record.failed) == (5, 1)
    assert set(counting.operations) <= {"read", "open", "stat", "list"}
    results[1] = bad("00001", "cannot label it: too small")
    run.work(results, unit())
    assert b"too small" in run.files()[f"set/00000{run.form.suffix}"] or to == "parquet"
    assert (
        next(r for r in run.form.read(run.store, unit()) if r.key == "00001")
        .record["error"]
        .endswith("too small")
    )


@pytest.mark.parametrize("to", ALL)
@pytest.mark.parametrize("results", [[], [bad("0"), bad("1")]])
def test_units_without_results_are_sealed(
    tmp_path: Path, to: str, results: list[RowResult]
) -> None:
    run = Run(tmp_path, to)
    record = run.work(results, unit())
    assert (record.rows, record.failed) == (len(results), len(results))
    assert run.is_done(unit()) is (not results)
    shard = f"set/00000{run.form.suffix}"
    assert set(run.files()) == {shard, ".selfment/records/set/00000.json"}
    run.store.remove([shard])
    run.work(results, unit())
    assert shard in run.files()


@pytest.mark.parametrize("to", ALL)
def test_what_is_done_is_skipped_until_the_settings_or_the_shard_change(
    tmp_path: Path, to: str
) -> None:
    run = Run(tmp_path, to)
    run.work(rows(4), unit())
    outputs = Outputs(run.store)
    assert outputs.plan([unit(), unit("set/00001")], run.form, Sources()) == [unit("set/00001")]
    assert (outputs.done, outputs.skipped, outputs.outdated) == (1, 4, 0)
    for changed in (Run(tmp_path, to, size=320), Run(tmp_path, "tar" if to != "tar" else "files")):
        outputs = Outputs(run.store)
        assert outputs.plan([unit()], changed.form, Sources()) == [unit()]
        assert (outputs.done, outputs.outdated) == (0, 1)
    later = unit(mtime_ns=6)
    outputs = Outputs(run.store)
    assert outputs.plan([later], run.form, Sources()) == [later]
    assert outputs.outdated == 0
    run.computed.clear()
    run.work(rows(5), later)
    assert len(run.computed) == 5
    assert run.is_done(later)
    fresh = Run(tmp_path / "fresh", to)
    fresh.work(rows(5), later)
    del later
    assert {k: v for k, v in run.files().items() if not k.startswith("fresh/")} == fresh.files()


def test_parts_of_another_shard_or_other_settings_count_for_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, "tar")
    with pytest.raises(Killed):
        run.work(rows(8), unit(), MortalStore(run.store, 5))
    assert any("/parts/" in name for name in run.files())
    for other, changed in ((unit(mtime_ns=6), run), (unit(), Run(tmp_path, "tar", size=320))):
        assert not UnitOutput(changed.store, changed.form, other).done
    assert len(UnitOutput(run.store, run.form, unit()).done) >= BLOCK
    run.work(rows(8), unit(mtime_ns=6))
    Outputs(run.store).finish([unit(mtime_ns=6)], Sources())
    assert set(run.files()) == {"set/00000.tar", ".selfment/records/set/00000.json"}


def test_parts_of_earlier_settings_stay_apart_from_new_parts(tmp_path: Path) -> None:
    results = {5: rows(8), 6: [good(row.key, 40) for row in rows(8)]}
    whole, run = Run(tmp_path / "whole", "tar"), Run(tmp_path / "out", "tar")
    whole.work(results[6], unit(mtime_ns=6))
    for mtime_ns in (5, 6):
        with pytest.raises(Killed):
            run.work(results[mtime_ns], unit(mtime_ns=mtime_ns), MortalStore(run.store, 5))
    run.work(results[6], unit(mtime_ns=6))
    shard = "set/00000.tar"
    assert run.files()[shard] == whole.files()[shard]


@pytest.mark.parametrize("first", ALL)
@pytest.mark.parametrize("second", ALL)
def test_results_of_other_settings_are_replaced_when_new_ones_are_there(
    tmp_path: Path, first: str, second: str
) -> None:
    fresh = Run(tmp_path / "fresh", second, size=320)
    fresh.work(rows(2), unit())
    Run(tmp_path / "old", first).work([*rows(2), good("gone", 9)], unit())
    old = Run(tmp_path / "old", first).files().keys()
    nth, is_over = 0, False
    while not is_over:
        folder = tmp_path / str(nth)
        shutil.copytree(tmp_path / "old", folder)
        run = Run(folder, second, size=320)
        try:
            run.work(rows(2), unit(), MortalStore(run.store, nth))
            is_over = True
        except Killed:
            shard = f"set/00000{run.form.suffix}"
            if shard not in run.files():
                assert old <= run.files().keys()
            run.work(rows(2), unit())
        assert run.files() == fresh.files()
        nth += 1


@pytest.mark.parametrize("damage", ["cut off", "empty", "changed"])
def test_damaged_parts_count_as_not_done_and_are_said(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, run = Run(tmp_path / "whole", "tar"), Run(tmp_path / "out", "tar")
    whole.work(rows(9), unit())
    with pytest.raises(Killed):
        run.work(rows(9), unit(), MortalStore(run.store, 6))
    parts = sorted((tmp_path / "out/.selfment/parts").rglob("*.tar"))
    assert len(parts) > 1
    data = parts[0].read_bytes()
    middle = len(data) // 2
    parts[0].write_bytes(
        {
            "cut off": data[:middle],
            "empty": b"",
            "changed": data[:middle] + b"?" + data[middle + 1 :],
        }[damage]
    )
    done = len(UnitOutput(run.store, run.form, unit()).done)
    assert done == BLOCK * (len(parts) - 1)
    said = capsys.readouterr().err
    assert said.startswith("1 part is damaged in ")
    assert said.endswith(": their rows are done again\n")
    run.work(rows(9), unit())
    Outputs(run.store).finish([unit()], Sources())
    assert run.files() == whole.files()


@pytest.mark.parametrize("to", ALL)
def test_damaged_shards_are_made_again(
    tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, to)
    run.work(rows(9), unit())
    whole = run.files()
    shard = tmp_path / f"set/00000{run.form.suffix}"
    data = shard.read_bytes()
    shard.write_bytes(data[:600])
    assert not run.is_done(unit())
    run.work(rows(9), unit())
    assert run.files() == whole
    assert f"9 of 9 rows are damaged or gone in {shard}: they are" in capsys.readouterr().err
    # A shard of the right size is read when failed rows are tried again.
    run.work([*rows(9), bad("x")], unit(mtime_ns=6))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2].ljust(len(data), b"?"))
    run.work([*rows(9), good("x")], unit(mtime_ns=6))
    assert len(list(run.form.read(run.store, unit()))) == 10
    assert "of 10 rows are damaged or gone in" in capsys.readouterr().err


def test_files_that_are_gone_are_made_again_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, "files")
    run.work(rows(9), unit())
    whole = run.files()
    (tmp_path / "set/00000/00003.png").unlink()
    (tmp_path / "overlays/set/00000/00005.jpg").write_bytes(b"")
    run.computed.clear()
    assert not run.is_done(unit())
    run.work(rows(9), unit())
    assert sorted(run.computed) == ["00003", "00005"]
    assert run.files() == whole


def test_a_damaged_record_is_said_and_its_unit_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, "tar")
    run.work(rows(3), unit())
    whole = run.files()
    record = tmp_path / ".selfment/records/set/00000.json"
    record.write_bytes(record.read_bytes().replace(b'"rows": 3', b'"rows": 4'))
    with pytest.raises(ValueError, match=r"00000\.json: it is damaged"):
        read_record(run.store, "set/00000")
    assert not run.is_done(unit())
    run.work(rows(3), unit())
    assert run.files() == whole
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0] == f"cannot read {record}: it is damaged; the unit set/00000 is done again"


def test_a_shard_that_ends_early_is_read_again(tmp_path: Path) -> None:
    run = Run(tmp_path, "tar")
    record = run.work(rows(4), unit(), error="cannot read the rest: it is cut off")
    assert record.error == "cannot read the rest: it is cut off"
    assert not run.is_done(unit())
    run.work(rows(6), unit())
    assert sorted(run.computed) == [row.key for row in rows(6)]
    assert run.is_done(unit())


def test_two_runs_at_once_make_the_same_results(tmp_path: Path) -> None:
    run, whole = Run(tmp_path / "out", "tar"), Run(tmp_path / "whole", "tar")
    whole.work(rows(9), unit())
    first = UnitOutput(run.store, run.form, unit(), BLOCK)
    second = UnitOutput(run.store, run.form, unit(), BLOCK)
    for one, other in zip(rows(9), reversed(rows(9)), strict=True):
        first.add(one)
        second.add(other)
    keys = [row.key for row in rows(9)]
    first.seal(keys)
    second.seal(keys)
    assert run.files() == whole.files()
    third = UnitOutput(run.store, run.form, unit(mtime_ns=6), BLOCK)
    for row in rows(9):
        third.add(row)
    run.store.remove([name for name in run.files() if "/parts/" in name])
    with pytest.raises(FileNotFoundError):  # nobody has sealed it
        third.seal(keys)


def test_another_run_that_removed_the_parts_has_sealed_the_unit(tmp_path: Path) -> None:
    run = Run(tmp_path, "tar")
    late = UnitOutput(run.store, run.form, unit(), BLOCK)
    for row in rows(9):
        late.add(row)
    record = run.work(rows(9), unit())  # goes on from the parts, and removes them
    assert run.computed == []
    assert late.seal([row.key for row in rows(9)]) == record


def test_keys_must_have_results(tmp_path: Path) -> None:
    output = UnitOutput(Run(tmp_path, "tar").store, form("tar"), unit())
    output.add(good("a"))
    with pytest.raises(ValueError, match="`keys` must have results: 'b' has none"):
        output.seal(["a", "b"])
    with pytest.raises(ValueError, match="`keys` must be different: got 2"):
        output.seal(["a", "a"])


def test_hugging_face_reads_the_output_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    run = Run(tmp_path / "out", "parquet")
    for name in ("a", "sub/b"):
        run.work(rows(4, failed=[2]), unit(name))
    run.work(rows(4), unit("c"), error="cannot read the rest")
    with pytest.raises(Killed):
        run.work(rows(8), unit("d"), MortalStore(run.store, 5))
    data = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in data.items()} == {"train": 12}
    assert data["train"][11]["mask"].size == (8, 6)
