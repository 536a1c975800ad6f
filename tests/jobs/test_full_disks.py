"""Failing disks: nothing that is done is lost, and nothing half written stays."""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import processes
from helpers.commands import label
from helpers.heads import a_head
from helpers.pictures import picture
from selfment.images.load import find_images
from selfment.jobs.records import Records
from selfment.models.head import HeadInfo, save_head
from selfment.util.files import atomic_file, remove_abandoned, write_atomically


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_for_results(photos_in, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("PIL.PngImagePlugin._save", full)
        patch.setitem(Image.SAVE, "PNG", full)
        code, err = label(capsys, photos_in, out)
    assert code == 1
    for name in ("a.png", "b.png", "c.png"):
        assert f"cannot label {photos_in}/{name}: No space left on device" in err
    assert "0 labelled, 0 already done, 3 failed" in err
    assert sorted(os.listdir(out)) == ["labels.jsonl"]
    assert "3 labelled" in label(capsys, photos_in, out)[1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_disk_that_is_full_for_the_records(photos_in, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    label(capsys, photos_in / "a.png", out)
    before = (out / "labels.jsonl").read_text()
    start = Records.__init__

    def on_full_disk(self, *arguments):
        start(self, *arguments)
        descriptor = os.open("/dev/full", os.O_WRONLY)
        os.dup2(descriptor, self._file.fileno())
        os.close(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "__init__", on_full_disk)
        patch.setattr("selfment.jobs.records.atomic_file", full)
        code, err = label(capsys, photos_in, out)
    assert code == 2
    sentence = f"selfment label: No space left on device: {out}/labels.jsonl"
    assert err.splitlines()[-1] == sentence
    assert (out / "labels.jsonl").read_text() == before
    assert "2 labelled, 1 already done, 0 failed" in label(capsys, photos_in, out)[1]


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(photos_in, tmp_path):
    """The system's own refusal to write: of one mask that is larger than the others."""
    noise = np.random.RandomState(0).randint(0, 2, (600, 600)).astype(bool)
    script = (
        "import signal, sys, numpy, resource; from selfment import cli;"
        "from selfment.jobs import label_job as labeling;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "before = labeling.mask_image;"
        "noise = numpy.random.RandomState(0).randint(0, 2, (600, 600)) > 0;"
        "labeling.mask_image = lambda m, s: before(noise if s == (600, 600) else m, s);"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    assert noise.size / 8 > 20000
    picture(photos_in / "large.jpg", size=(600, 600))
    arguments = ["label", str(photos_in), "--out", str(tmp_path / "out"), "--size", "96"]
    done = processes.run([sys.executable, "-c", script, *arguments])
    assert done.returncode == 1, done.stderr
    assert f"cannot label {photos_in}/large.jpg: File too large" in done.stderr
    assert "3 labelled, 0 already done, 1 failed" in done.stderr
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20000


@pytest.mark.parametrize("save", ["torch", "plain"])
def test_a_full_disk_is_an_error_with_the_file_and_what_it_takes(
    save: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullFile(io.RawIOBase):
        def __init__(self, file: IO[bytes]) -> None:
            self.file = file

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            if self.file.tell() >= 512:
                full()
            return self.file.write(data)

    def fill(file: IO[bytes]) -> None:
        if save == "torch":
            torch.save(torch.zeros(4096), FullFile(file))
        else:
            for _ in range(9):
                FullFile(file).write(bytes(128))

    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(tmp_path / "file", fill)
    assert caught.value.filename == str(tmp_path / "file")
    assert re.search(r"it had \d+ bytes and needs more, [\d,]+ are free", caught.value.strerror)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_head_that_was_there(tmp_path, monkeypatch):
    head = a_head()
    save_head(tmp_path / "head", head, HeadInfo("classic"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "head").iterdir()}
    monkeypatch.setattr("selfment.util.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_head(tmp_path / "head", head, HeadInfo("classic", size=1))
    assert {path.name: path.read_bytes() for path in (tmp_path / "head").iterdir()} == before


def test_folders_that_cannot_be_written(photos_in, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, err = label(capsys, photos_in, tmp_path / "file/out")
    assert code == 2
    assert "`out` must be a folder that can be written: got " in err
    assert len(err.splitlines()) == 1
    (tmp_path / "out/labels.jsonl").mkdir(parents=True)
    code, err = label(capsys, photos_in, tmp_path / "out")
    assert code == 2
    assert err.endswith("(Is a directory)")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_no_permission(photos_in, tmp_path, capsys):
    (photos_in / "b.png").chmod(0)
    code, err = label(capsys, photos_in, tmp_path / "out")
    assert code == 1
    assert f"cannot read {photos_in}/b.png: permission denied" in err
    (tmp_path / "locked").mkdir(mode=0o500)
    code, err = label(capsys, photos_in, tmp_path / "locked")
    assert code == 2
    assert "`out` must be a folder that can be written" in err


def test_a_folder_at_the_name_of_a_result(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    label(capsys, photos_in, out)
    (out / "b.png").unlink()
    (out / "b.png").mkdir()
    picture(photos_in / "b.png", 9, (41, 30))
    code, err = label(capsys, photos_in, out)
    assert code == 1
    assert f"cannot label {photos_in}/b.png: Is a directory: {out}/b.png" in err
    assert "0 labelled, 2 already done, 1 failed" in err


def test_a_file_that_vanishes(photos_in, tmp_path, capsys, monkeypatch):
    def vanished(inputs, out):
        found = find_images(inputs, out=out)
        (photos_in / "b.png").unlink()
        return found

    monkeypatch.setattr("selfment.jobs.predict.find_inputs", vanished)
    code, err = label(capsys, photos_in, tmp_path / "out")
    assert code == 1
    assert f"cannot read {photos_in}/b.png: no such file" in err
    assert "2 labelled, 0 already done, 1 failed" in err


def test_only_what_nobody_writes_is_removed(tmp_path):
    old = time.time() - 3600
    stale = tmp_path / f"sub/.{'0' * 32}.tmp"
    others = [tmp_path / f".{'0' * 31}.tmp", tmp_path / "notes.tmp", tmp_path / f".{'1' * 32}.tmp"]
    stale.parent.mkdir()
    for path in (stale, *others):
        path.write_bytes(b"half")
    for path in (stale, *others[:2]):
        os.utime(path, (old, old))
    with atomic_file(tmp_path / "result") as file:
        file.write(b"slow")
        file.flush()
        (at_work,) = (path for path in tmp_path.glob(".*.tmp") if path not in others)
        os.utime(at_work, (old, old))
        remove_abandoned(tmp_path)
        assert at_work.exists()
    assert (tmp_path / "result").read_bytes() == b"slow"
    assert not stale.exists()
    assert all(path.exists() for path in others)  # no pattern of ours, or too young to tell


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(number, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    stale = tmp_path / f".{'0' * 32}.tmp"
    stale.write_bytes(b"half")
    os.utime(stale, (1, 1))
    write_atomically(tmp_path / "result", lambda file: file.write(b"whole"), durable=True)
    remove_abandoned(tmp_path)
    assert (tmp_path / "result").read_bytes() == b"whole"
    assert stale.exists()  # it could be at work
    path = tmp_path / "labels.jsonl"
    runs = [Records(path, shard=(rank, 2)) for rank in range(2)]
    for rank, run in enumerate(runs):
        run.add({"image": f"/{rank}.png", "settings": {}})
        run.close()
    # No process knows that it was the last: the next run that is not sharded merges.
    assert len(list(tmp_path.glob("labels-rank*.jsonl"))) == 2
    records = Records(path)
    assert {records.get(f"/{rank}.png")["image"] for rank in range(2)} == {"/0.png", "/1.png"}
    records.close()
    assert not list(tmp_path.glob("labels-rank*.jsonl"))
    assert len(path.read_text().splitlines()) == 2


def test_a_folder_that_cannot_be_read_takes_durable_files(tmp_path, monkeypatch):
    opened = os.open

    def refuse(path, *arguments, **options):
        if os.fspath(path) == str(tmp_path):
            raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr("selfment.util.files.os.open", refuse)
    write_atomically(tmp_path / "result", lambda file: file.write(b"whole"), durable=True)
    assert (tmp_path / "result").read_bytes() == b"whole"


def test_a_killed_writer_leaves_nothing_for_the_next_run(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    script = (
        "import sys, pathlib; from selfment.util.files import atomic_file\n"
        "with atomic_file(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); print('writing', flush=True); input()\n"
    )
    command = [sys.executable, "-c", script, str(out / "a.png")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with processes.started(command, **pipes) as writer:
        assert writer.stdout.readline() == "writing\n"
        (left,) = out.iterdir()
        os.utime(left, (1, 1))
        label(capsys, photos_in / "b.png", out)
        assert left.exists()  # it is at work
        writer.kill()
        writer.wait()
    label(capsys, photos_in / "b.png", out)
    assert left.exists()  # nothing to do, so that nothing was looked for
    label(capsys, photos_in / "c.png", out)
    assert not left.exists()
