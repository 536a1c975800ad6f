"""Hostile input and failing disks: one sentence each, nothing is run, and the rest gets done."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from helpers.commands import errors, label
from helpers.heads import a_head
from helpers.pictures import picture
from selfment import cli
from selfment.backbones import WeightsError
from selfment.evaluation.folders import evaluate
from selfment.images.load import ImageError, find_images, load_image
from selfment.models.head import HeadInfo, load_head, save_head
from selfment.util.files import write_atomically

# Images.


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (100_000, 100_000, r"more than 178,956,970 \(decompression bomb\)"),
        (2**31 - 1, 2**31 - 1, r"more than 178,956,970 \(decompression bomb\)"),
        (0, 10, ""),
        (10, 0, ""),
        (300, 300, "truncated"),
    ],
)
def test_headers_that_lie(width, height, reason, tmp_path):
    (tmp_path / "a.png").write_bytes(bomb(width, height))
    with pytest.raises(ImageError, match=rf"cannot read .*a\.png: .*{reason}"):
        load_image(tmp_path / "a.png")


def test_a_bomb_costs_its_own_image_only(photos_in, tmp_path, capsys):
    (photos_in / "b.png").write_bytes(bomb(100_000, 100_000))
    code, err = label(capsys, photos_in, tmp_path / "out")
    assert code == 1
    assert f"cannot read {photos_in}/b.png: it has too many pixels" in err
    assert "2 labelled, 0 already done, 1 failed" in err


def test_long_images_are_labelled(tmp_path, capsys):
    picture(tmp_path / "in/row.png", size=(100_000, 1))
    picture(tmp_path / "in/column.png", size=(1, 100_000))
    assert label(capsys, tmp_path / "in", tmp_path / "out")[0] == 0
    assert Image.open(tmp_path / "out/row.png").size == (100_000, 1)
    assert Image.open(tmp_path / "out/column.png").size == (1, 100_000)


@pytest.mark.parametrize("tail", [b"PK\x03\x04" + bytes(100), b"<html><script>alert(1)</script>"])
def test_what_follows_an_image_is_ignored(tail, tmp_path):
    path = picture(tmp_path / "a.png")
    expected = np.asarray(load_image(path)[0])
    path.write_bytes(path.read_bytes() + tail)
    assert np.array_equal(np.asarray(load_image(path)[0]), expected)


def test_bytes_say_what_a_file_is(tmp_path):
    picture(tmp_path / "a.gif").rename(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg")[0].size == (50, 30)
    (tmp_path / "b.jpg").write_bytes(b"<html><body>404</body></html>")
    with pytest.raises(ImageError, match=r"cannot read .*b\.jpg: not an image that Pillow knows"):
        load_image(tmp_path / "b.jpg")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_of_an_animation_is_read(suffix, tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "lime")]
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    image, notes = load_image(path)
    assert image.getpixel((5, 5)) == (255, 0, 0)
    assert notes == ["first frame of 3"]


def test_postscript_is_not_run(tmp_path, monkeypatch):
    def started(*arguments, **options):
        raise AssertionError(arguments)

    picture(tmp_path / "a.eps").rename(tmp_path / "a.png")
    monkeypatch.setattr("subprocess.Popen", started)
    monkeypatch.setattr("subprocess.check_call", started)
    with pytest.raises(ImageError, match="PostScript is a program, which is not run"):
        load_image(tmp_path / "a.png")


def test_every_truncation_is_an_error_or_an_image(tmp_path):
    path = tmp_path / "a.img"
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA"):
        whole = io.BytesIO()
        Image.open(picture(tmp_path / "whole.png")).save(whole, kind)
        data = whole.getvalue()
        for end in range(0, len(data), max(1, len(data) // 40)):
            path.write_bytes(data[:end])
            try:
                assert load_image(path)[0].mode == "RGB"
            except ImageError as error:
                assert str(path) in str(error)  # noqa: PT017 - most lengths raise, not all


# Inputs that are no regular files.


@pytest.fixture
def special(tmp_path):
    """A pipe that nobody writes to, and a socket, with names of images."""
    folder = tmp_path / "special"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)  # a socket's path is short
            server.bind("socket.png")
        yield folder


# A test that waits for one of these hangs, which ends it after its time limit.


def test_pipes_and_devices_are_not_waited_for(special, tmp_path, capsys):
    with pytest.raises(ValueError, match="holds no image"):
        find_images([special])
    with pytest.raises(ValueError, match="no image matches"):
        find_images([special / "*.png"])
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        find_images([special / "pipe.png"])
    picture(special / "a.png")
    assert [entry.path.name for entry in find_images([special])] == ["a.png"]
    for path in (special / "pipe.png", special / "socket.png", "/dev/zero"):
        with pytest.raises(ImageError, match="it is a pipe, a socket or a device"):
            load_image(path)
    for name in ("pipe.safetensors", "pipe.pt"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(WeightsError, match=r"`head` must be a checkpoint"):
            load_head(tmp_path / name)
    os.mkfifo(tmp_path / "labels.jsonl")
    code, err = label(capsys, special, tmp_path)
    assert code == 2
    assert err.startswith("selfment label: `out` must be a folder that can be written")


def test_an_image_that_becomes_a_pipe(photos_in, tmp_path, capsys, monkeypatch):
    def swapped(inputs, out):
        found = find_images(inputs, out=out)
        (photos_in / "b.png").unlink()
        os.mkfifo(photos_in / "b.png")
        return found

    monkeypatch.setattr("selfment.jobs.predict.find_inputs", swapped)
    code, err = label(capsys, photos_in, tmp_path / "out")
    assert (code, err.splitlines()[0]) == (
        1,
        f"cannot read {photos_in}/b.png: it is a pipe, a socket or a device",
    )
    assert "2 labelled, 0 already done, 1 failed" in err


def test_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "report.json")
    with pytest.raises(OSError, match="it is a pipe, a socket or a device"):
        write_atomically(tmp_path / "report.json", lambda file: file.write(b"{}"))
    assert not (tmp_path / "report.json").is_file()
    assert os.listdir(tmp_path) == ["report.json"]


# Names.


def test_links_that_loop_or_lead_outside(photos_in, tmp_path):
    picture(tmp_path / "outside/x.png")
    for name in ("one", "two", "three"):
        (photos_in / name).symlink_to(photos_in)
    (photos_in / "out").symlink_to(tmp_path / "outside")
    (photos_in / "gone.png").symlink_to(tmp_path / "nothing.png")
    expected = ["a.png", "b.png", "c.png"]
    for where in (photos_in, photos_in / "**", photos_in / "**/*.png", photos_in / "**/**/?.png"):
        found = [entry.path.relative_to(photos_in).as_posix() for entry in find_images([where])]
        assert found == expected, where


def test_names_with_all_that_names_may_have(tmp_path, capsys):
    folder = os.fsencode(tmp_path / "photos")
    os.mkdir(folder)
    data = picture(tmp_path / "source.png").read_bytes()
    names = [
        b"-rf.png",
        b"--out.png",
        b"a\nb.png",
        b"\x1b[31mred.png",
        b"\xff\xfe.png",
        b"$(id).png",
    ]
    if sys.platform == "darwin":  # its file systems take no such name
        names.remove(b"\xff\xfe.png")
    names += [b"*.png", b"[a].png", b" .png", b"x" * 250 + b".png", "é".encode() * 125 + b".png"]
    for name in names:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
    out = tmp_path / "out"
    code, err = label(capsys, tmp_path / "photos", out, "--format", "png,coco,yolo")
    assert code == 0, err
    assert set(names) <= set(os.listdir(os.fsencode(out)))
    assert len(json.loads((out / "annotations.json").read_text())["images"]) == len(names)
    links = (out / "images.txt").read_text().splitlines()
    unlisted = {b"a\nb.png", b"\xff\xfe.png"} & set(names)
    assert len(links) == len(names) - len(unlisted)
    assert all((out / link).exists() for link in links)
    assert f"data.yaml is without {len(unlisted)} image" in err
    assert f"{len(names)} already done" in label(capsys, tmp_path / "photos", out)[1]
    report = evaluate(out, out, protocol="paper", metrics=["IoU"], progress=False, suffix="")
    for kind in ("json", "csv", "markdown", "latex"):
        report.save(tmp_path / f"report.{kind}", kind)


def test_a_sentence_is_one_line_whatever_the_name(tmp_path, capsys):
    names = ["a\nb.png", "\x1b[31mred.png"]
    for name in names:
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"no image")
    code, err = label(capsys, tmp_path / "photos", tmp_path / "out")
    assert code == 1
    assert f"cannot read {tmp_path}/photos/a\\nb.png: not an image that Pillow knows" in err
    assert f"cannot read {tmp_path}/photos/\\x1b[31mred.png: not an image" in err
    assert set(errors(tmp_path / "out")) == set(names)


def test_a_name_that_is_too_long_for_its_result(tmp_path, capsys):
    save_head(tmp_path / "head", a_head(), HeadInfo("classic"))
    picture(tmp_path / "photos" / ("x" * 250 + ".png"))
    picture(tmp_path / "photos/a.png")
    arguments = ["predict", tmp_path / "photos", "--head", tmp_path / "head"]
    code = cli.main([str(a) for a in [*arguments, "--out", tmp_path / "out", "--size", 96]])
    err = capsys.readouterr().err
    assert code == 1
    assert "File name too long: " in err
    assert "1 segmented, 0 already done, 1 failed" in err
    assert not list((tmp_path / "out").rglob("*.tmp"))


# Checkpoints.


# Checksums: what a disk changes is noticed, reported and made again.


# Disks that fail.


# Files that a killed process leaves.
