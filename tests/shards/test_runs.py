"""`label` and `predict` over shards: the masks of a folder run, to the byte, also after kills."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers import mortal, processes, stores
from helpers import shard_runs as shards
from helpers.commands import call
from helpers.heads import a_head
from selfment import PseudoLabeler
from selfment.images.load import find_images
from selfment.jobs.label import label_images
from selfment.models.head import HeadInfo, save_head
from selfment.shards import label_shards

pytest.importorskip("pyarrow", reason="no PyArrow: pip install 'selfment[shards]'")

SIZE = ("--size", 96, "--batch", 2)


def folder_masks(tmp_path: Path, files: shards.Files) -> dict[str, bytes]:
    """Returns the masks of a run over a folder."""
    folder = shards.write_folder(tmp_path / "folder", files)
    out = tmp_path / "folder-out"
    label_images(find_images([folder]), out, PseudoLabeler(size=96, device="cpu"), progress=False)
    return {path.stem: path.read_bytes() for path in out.glob("*.png")}


def last_line(err: str) -> str:
    return err.replace("\r", "\n").rstrip("\n").splitlines()[-1]


@pytest.fixture(params=["local", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path, object_server: str | None) -> str:
    """An empty folder on this machine, or on the object store."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("to", ["tar", "parquet", "files"])
def test_the_masks_are_those_of_a_folder(tmp_path, capsys, base, kind, to):
    files = shards.photos(7)
    inputs = shards.write_shards(f"{base}/in", kind, files, 4)
    out = f"{base}/out"
    code, _, err = call(capsys, "label", inputs, "--out", out, "--to", to, *SIZE)
    assert (code, last_line(err)) == (0, f"7 labelled, 0 already done, 0 failed; see {out}")
    assert shards.masks(out) == folder_masks(tmp_path, files)
    before = shards.sealed(out)
    code, _, err = call(capsys, "label", inputs, "--out", out, "--to", to, *SIZE)
    assert (code, last_line(err)) == (0, f"0 labelled, 7 already done, 0 failed; see {out}")
    assert shards.sealed(out) == before


@pytest.mark.parametrize("to", ["tar", "files"])
def test_a_folder_on_an_object_store(tmp_path, capsys, bucket, to):
    files = shards.photos(5)
    for name, data in files.items():
        shards.open_store("out", f"{bucket}/in").write(f"sub/{name}", data)
    out = f"{bucket}/out"
    code, _, err = call(capsys, "label", f"{bucket}/in", "--out", out, "--to", to, *SIZE)
    assert code == 0, err
    masks = {Path(key).name: data for key, data in shards.masks(out).items()}
    assert masks == folder_masks(tmp_path, files)
    if to == "files":
        assert "sub/000000.png" in shards.sealed(out)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_the_records_are_those_of_label(tmp_path, capsys, kind):
    files = shards.photos(3)
    inputs = shards.write_shards(f"{tmp_path}/in", kind, files, 3)
    words = ("--format", "png,coco,yolo,fiedler", "--overlay", *SIZE)
    code, _, err = call(capsys, "label", inputs, "--out", f"{tmp_path}/out", *words)
    assert code == 0, err
    folder = shards.write_folder(tmp_path / "folder", files)
    code, _, err = call(capsys, "label", folder, "--out", tmp_path / "folder-out", *words)
    assert code == 0, err
    lines = (tmp_path / "folder-out/labels.jsonl").read_text().splitlines()
    records = {record["image"]: record for record in map(json.loads, lines)}
    [sealed] = shards.sealed(f"{tmp_path}/out").values()
    for row in shards.rows_of(sealed, kind):
        record = records[row["image"]]
        shared = set(row) & set(record) - {"settings", "mask", *row_contents()}
        assert {"eigenvalue", "confidence", "ipo_iters", "foreground", "checksum"} <= shared
        assert {name: row[name] for name in shared} == {name: record[name] for name in shared}
        assert row["mask"] == (tmp_path / "folder-out" / record["mask"]).read_bytes()
        assert (row["width"], row["height"]) == Image.open(folder / row["image"]).size


def row_contents() -> tuple[str, ...]:
    return ("overlay", "annotations", "boxes", "fiedler")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_broken_image_is_reported_and_tried_again(capsys, base, kind):
    files = shards.photos(6, broken=[4])
    inputs = shards.write_shards(f"{base}/in", kind, files, 3)
    out = f"{base}/out"
    sentence = f"cannot read {inputs}/00001.{kind}: 000004.png: not an image that Pillow knows"
    for made in (5, 0):
        code, _, err = call(capsys, "label", inputs, "--out", out, *SIZE)
        assert (code, err.count(sentence)) == (1, 1), err
        counts = f"{made} labelled, {5 - made} already done, 1 failed"
        assert last_line(err) == f"{counts}; see {out}"
    rows = shards.rows_of(shards.sealed(out)[f"00001.{kind}"], kind)
    assert [row["error"] for row in rows] == [None, sentence, None]
    assert [row["mask"] is None for row in rows] == [False, True, False]


def change(path: Path, data: bytes) -> None:
    """Writes a file without a change of its modification time."""
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_only_the_failed_image_of_a_tar_file_is_read_again(tmp_path, capsys):
    files = shards.photos(6)
    files["000003.png"] = bytes(len(files["000003.png"]))
    shard = Path(shards.write_shards(f"{tmp_path}/in", "tar", files, 6), "00000.tar")
    out = f"{tmp_path}/out"
    assert call(capsys, "label", shard, "--out", out, *SIZE)[0] == 1
    data = shards.tar_of(shards.photos(6))
    start = data.index(b"000003.png")
    change(shard, b"?" * start + data[start:])  # whoever reads it from its beginning fails
    code, _, err = call(capsys, "label", shard, "--out", out, *SIZE)
    assert (code, last_line(err)) == (0, f"1 labelled, 5 already done, 0 failed; see {out}")
    assert "images that failed in 1 shard are tried again\n" in err
    assert shards.masks(out) == folder_masks(tmp_path, shards.photos(6))


def test_a_command_says_which_shards_are_read_again(tmp_path, capsys):
    data = shards.tar_of(shards.photos(3, broken=[1]))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tar.gz").write_bytes(gzip.compress(data))
    (tmp_path / "in/b.tar").write_bytes(data)
    words = ("label", tmp_path / "in", "--out", tmp_path / "out", *SIZE)
    assert "tried again" not in call(capsys, *words)[2]
    _, _, err = call(capsys, *words)
    said = "images that failed in 2 shards are tried again; 1 of these is read from the beginning\n"
    assert said in err


def test_a_shard_that_breaks_while_it_is_read_again_costs_no_result(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("selfment.shards.unit_output._MOST_STARTS", 0)
    shard = Path(
        shards.write_shards(f"{tmp_path}/in", "tar", shards.photos(6, broken=[1]), 6), "00000.tar"
    )
    out = f"{tmp_path}/out"
    assert call(capsys, "label", shard, "--out", out, *SIZE)[0] == 1
    before, data = shards.sealed(out), shard.read_bytes()
    place = data.index(b"000003.png")
    change(shard, data[:place] + b"?" * 512 + data[place + 512 :])
    code, _, err = call(capsys, "label", shard, "--out", out, *SIZE)
    assert (code, "1 failed, 1 damaged shard; see " in err) == (1, True), err
    assert shards.sealed(out) == before


def test_a_truncated_shard_gives_the_rows_before_the_damage(tmp_path, capsys):
    files = shards.photos(6)
    inputs = Path(shards.write_shards(f"{tmp_path}/in", "tar", files, 3))
    whole = (inputs / "00000.tar").read_bytes()
    (inputs / "00000.tar").write_bytes(whole[: whole.index(b"000002.json")])
    out = f"{tmp_path}/out"
    code, _, err = call(capsys, "label", inputs, "--out", out, *SIZE)
    assert code == 1, err
    assert f"cannot read {inputs}/00000.tar after 3 rows: " in err
    assert last_line(err) == f"6 labelled, 0 already done, 0 failed, 1 damaged shard; see {out}"
    (inputs / "00000.tar").write_bytes(whole)
    code, _, err = call(capsys, "label", inputs, "--out", out, *SIZE)
    assert code == 0, err
    assert shards.masks(out) == folder_masks(tmp_path, files)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize(
    ("server_base", "kind"),
    [
        *[(scheme, kind) for scheme in ("local", "s3") for kind in ("tar", "parquet")],
        *[("gs", "tar"), ("abfs", "parquet")],
    ],
    indirect=["server_base"],
)
def test_a_killed_run_goes_on(tmp_path, server_base, kind):
    """Parts are of two rows here, so that some are done when the run is killed."""
    files = shards.photos(20)
    inputs = shards.write_shards(stores.under(server_base, "in"), kind, files, 10)
    undisturbed, out = (stores.under(server_base, name) for name in ("undisturbed", "out"))
    command = ("label", inputs, "--size", 96, "--batch", 1, "--device", "cpu")
    done = run(mortal.alone(*command, "--out", undisturbed))
    assert done.returncode == 0, done.stderr
    fault = "selfment.models.labeler:PseudoLabeler.start_batch"
    small = "import selfment.shards.worker; selfment.shards.worker.PART_ROWS = 2"
    words = mortal.command(tmp_path, fault, 17, *command, "--out", out, before=small)
    killed = run([sys.executable, *words])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert shards.sealed(out).keys() < shards.sealed(undisturbed).keys()
    again = run(mortal.alone(*command, "--out", out))
    assert again.returncode == 0, again.stderr
    made = int(last_line(again.stderr).split()[0])
    assert 4 <= made < 10  # the first shard and a part of the second were done
    assert f"{made} labelled, {20 - made} already done, 0 failed" in again.stderr
    assert shards.sealed(out) == shards.sealed(undisturbed)
    assert shards.masks(out) == folder_masks(tmp_path, files)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=processes.LIMIT)


def test_an_interrupted_run_keeps_rows_that_are_no_whole_part(tmp_path, capsys, monkeypatch):
    inputs = shards.write_shards(f"{tmp_path}/in", "tar", shards.photos(12), 12)
    out, passes = f"{tmp_path}/out", 0
    original = PseudoLabeler.start_batch

    def interrupted(self, batch):
        nonlocal passes
        passes += 1
        if passes == 6:
            raise KeyboardInterrupt
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PseudoLabeler, "start_batch", interrupted)
        words = ("label", inputs, "--out", out, "--size", 96, "--batch", 1)
        code, _, err = call(capsys, *words)
    assert (code, last_line(err)) == (130, "selfment label: interrupted; what was done is kept")
    code, _, err = call(capsys, *words)
    assert (code, last_line(err)) == (0, f"7 labelled, 5 already done, 0 failed; see {out}")


def test_predictions(tmp_path, capsys):
    files = shards.photos(4)
    inputs = shards.write_shards(f"{tmp_path}/in", "tar", files, 2)
    save_head(tmp_path / "head", a_head(), HeadInfo("classic"))
    words = ("--head", tmp_path / "head", "--size", 64, "--binary", 0.4, "--overlay")
    out = tmp_path / "out"
    code, _, err = call(capsys, "predict", inputs, "--out", out, "--to", "files", *words)
    assert (code, last_line(err)) == (0, f"4 segmented, 0 already done, 0 failed; see {out}")
    folder = shards.write_folder(tmp_path / "folder", files)
    code, _, err = call(capsys, "predict", folder, "--out", tmp_path / "folder-out", *words)
    assert code == 0, err
    for name in ("000001_saliency.png", "000001_mask.png", "overlays/000001_overlay.jpg"):
        [found] = out.rglob(Path(name).name)
        assert found.read_bytes() == (tmp_path / "folder-out" / name).read_bytes()
    shard = tmp_path / "tar"
    code, _, err = call(capsys, "predict", inputs, "--out", shard, "--binary", 0.5, *words[:4])
    assert code == 0, err
    code, _, err = call(capsys, "predict", inputs, "--out", shard, *words[:6])
    assert "the settings have changed: 2 shards to segment again" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--report", "x.html"),
            "`report` must be left alone with tar files, tables and URLs: got 'x.html'",
        ),
        (
            ("--grid", "6x6"),
            "`grid` must be left alone with tar files, tables and URLs: got (6, 6)",
        ),
        (
            ("--objects", "2", "--format", "fiedler"),
            "`format` must be formats without 'fiedler' where the method has no Fiedler vector: "
            "got 'objects'",
        ),
    ],
)
def test_what_shards_do_not_have(tmp_path, capsys, words, sentence):
    inputs = shards.write_shards(f"{tmp_path}/in", "tar", shards.photos(1), 1)
    code, _, err = call(capsys, "label", inputs, "--out", tmp_path / "out", *words)
    assert (code, last_line(err)) == (2, f"selfment label: {sentence}")


def test_inputs_of_several_kinds_need_a_kind_of_outputs(tmp_path, capsys):
    files = shards.photos(2)
    shards.write_shards(f"{tmp_path}/in/a", "tar", files, 2)
    shards.write_shards(f"{tmp_path}/in/b", "parquet", files, 2)
    code, _, err = call(capsys, "label", tmp_path / "in", "--out", tmp_path / "out", *SIZE)
    rule = "`to` must be given for inputs of several kinds: got parquet, tar"
    assert (code, last_line(err)) == (2, f"selfment label: {rule}")


def test_a_table_among_photographs_is_left_out_as_ever(tmp_path, capsys):
    folder = shards.write_folder(tmp_path / "in", shards.photos(1))
    (folder / "metadata.parquet").write_bytes(b"")
    code, _, err = call(capsys, "label", folder, "--out", tmp_path / "out", *SIZE)
    assert code == 0, err
    assert (tmp_path / "out/labels.jsonl").exists()
    assert "1 .parquet (a shard, which `selfment label` and" in err


def test_an_input_that_is_broken_later_costs_no_earlier_result(tmp_path, capsys):
    inputs = Path(shards.write_shards(f"{tmp_path}/in", "tar", shards.photos(4), 2))
    out = f"{tmp_path}/out"
    assert call(capsys, "label", inputs, "--out", out, *SIZE)[0] == 0
    before = shards.sealed(out)
    (inputs / "00000.tar").write_bytes(b"no tar file")
    code, _, err = call(capsys, "label", inputs, "--out", out, *SIZE)
    assert code == 1
    assert f"cannot read {inputs}/00000.tar: " in err
    assert shards.sealed(out) == before
    (inputs / "00001.tar").write_bytes(shards.tar_of(shards.photos(2, broken=[0, 1])))
    code, _, err = call(capsys, "label", inputs, "--out", out, *SIZE)
    assert (code, "2 failed, 1 damaged shard" in err) == (1, True), err


def test_one_run_at_a_time(tmp_path, capsys):
    inputs = shards.write_shards(f"{tmp_path}/in", "tar", shards.photos(2), 1)
    out = tmp_path / "out"
    with shards.open_store("out", out).locked(".selfment/lock"):
        code, _, err = call(capsys, "label", inputs, "--out", out, *SIZE)
    rule = f"`out` must be used by one run at a time: another holds {out}/.selfment/lock"
    assert (code, last_line(err)) == (2, f"selfment label: {rule}")
    assert call(capsys, "label", inputs, "--out", out, *SIZE)[0] == 0
    (tmp_path / "file").touch()
    code, _, err = call(capsys, "label", inputs, "--out", tmp_path / "file", *SIZE)
    rule = f"`out` must be a folder that can be written: got '{tmp_path}/file' (File exists)"
    assert (code, last_line(err)) == (2, f"selfment label: {rule}")


def test_one_folder_has_one_kind_of_results(tmp_path, capsys):
    files = shards.photos(2)
    folder = shards.write_folder(tmp_path / "folder", files)
    inputs = shards.write_shards(f"{tmp_path}/in", "tar", files, 2)
    save_head(tmp_path / "head", a_head(), HeadInfo("classic"))
    out, plain = tmp_path / "out", tmp_path / "plain"
    assert call(capsys, "label", inputs, "--out", out, *SIZE)[0] == 0
    assert call(capsys, "label", folder, "--out", plain, *SIZE)[0] == 0
    before = shards.sealed(str(out)), shards.sealed(str(plain))
    rule = "`out` must be another folder than that of a run over"
    for words, sentence in {
        ("label", folder, "--out", out): f"{rule} shards: got '{out}'",
        ("label", inputs, "--out", plain): (
            f"{rule} a folder of images: got {plain} with labels.jsonl"
        ),
        ("predict", inputs, "--head", tmp_path / "head", "--out", out): (
            f"`out` must have the results of one command: got {out} with those of `selfment label`"
        ),
    }.items():
        code, _, err = call(capsys, *words, *SIZE)
        assert (code, last_line(err)) == (2, f"selfment {words[0]}: {sentence}")
    assert (shards.sealed(str(out)), shards.sealed(str(plain))) == before


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_wrong_column_costs_no_earlier_result(tmp_path, capsys, kind):
    inputs = shards.write_shards(f"{tmp_path}/in", kind, shards.photos(4), 2)
    out = f"{tmp_path}/out"
    assert call(capsys, "label", inputs, "--out", out, *SIZE)[0] == 0
    before = shards.sealed(out)
    code, _, err = call(capsys, "label", inputs, "--out", out, "--column", "webp", *SIZE)
    assert (code, err.count("cannot read ")) == (1, 2), err
    assert last_line(err) == f"0 labelled, 0 already done, 0 failed, 2 damaged shards; see {out}"
    assert shards.sealed(out) == before
    code, _, err = call(capsys, "label", inputs, "--out", out, "--column", "", *SIZE)
    sentence = "`column` must be a name, or left alone: got ''"
    assert (code, last_line(err)) == (2, f"selfment label: {sentence}")


def test_a_bucket_that_does_not_exist(tmp_path, capsys, bucket):
    inputs = shards.write_shards(f"{tmp_path}/in", "tar", shards.photos(1), 1)
    code, _, err = call(capsys, "label", inputs, "--out", f"{bucket}-not/out", *SIZE)
    rule = f"`out` must be in a bucket that exists: got '{bucket}-not/out'"
    assert (code, last_line(err)) == (2, f"selfment label: {rule}")
    code, _, err = call(capsys, "label", inputs, "--out", "s3://", *SIZE)
    assert (code, last_line(err)) == (2, "selfment label: `out` must name a bucket: got 's3://'")


def test_globs_and_folders_that_hold_shards(tmp_path, capsys, monkeypatch):
    shards.write_shards(f"{tmp_path}/in/sub", "tar", shards.photos(2), 1)
    monkeypatch.chdir(tmp_path)
    for index, words in enumerate(["in", "in/*/*", "in/sub/0000[01].tar"]):
        code, _, err = call(capsys, "label", words, "--out", f"out{index}", *SIZE)
        assert (code, last_line(err).split(";")[0]) == (0, "2 labelled, 0 already done, 0 failed")


def test_from_python(tmp_path):
    files = shards.photos(3)
    inputs = shards.write_shards(f"{tmp_path}/in", "tar", files, 2)
    labeler, out = PseudoLabeler(size=96, device="cpu"), tmp_path / "out"
    made = label_shards([Path(inputs)], out, labeler, to="parquet", progress=False)
    assert (made.done, made.skipped, made.failed, made.damaged) == (3, 0, 0, 0)
    assert made.out == str(out)
    assert shards.masks(str(out)) == folder_masks(tmp_path, files)
    again = label_shards([Path(inputs)], out, labeler, to="parquet", progress=False)
    assert (again.done, again.skipped, again.failed) == (0, 3, 0)
