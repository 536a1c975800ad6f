"""Hostile input and failing disks: one sentence each, nothing is run, and the rest gets done."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import resource
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from helpers import processes
from helpers.heads import a_head
from selfment import cli
from selfment.backbones import WeightsError, load_backbone
from selfment.cli import common
from selfment.evaluation.folders import evaluate
from selfment.experiments.recipes import RecipeError, read_recipe
from selfment.images.load import ImageError, find_images, load_image
from selfment.jobs.records import Records
from selfment.models.head import HeadInfo, load_head, save_head
from selfment.training.cache import TensorCache
from selfment.util.files import atomic_file, remove_abandoned, write_atomically
from selfment.util.lines import with_checksum, without_checksum


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def photos_in(tmp_path) -> Path:
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        picture(tmp_path / "photos" / name, seed)
    return tmp_path / "photos"


def label(capsys, folder, out, *options) -> tuple[int, str]:
    """The exit code and stderr of ``selfment label``, less the lines that every run has."""
    arguments = ("label", folder, "--out", out, "--size", 96, *options)
    code = cli.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    usual = ("classic", "backbone", "image/s", "DINO", "?image", "s/image")
    return code, "\n".join(
        line for line in lines if line.strip() and not any(word in line for word in usual)
    )


def errors(out: Path) -> dict[str, str | None]:
    lines = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    return {os.path.basename(line["image"]): line["error"] for line in lines}


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
    assert load_image(tmp_path / "a.jpg")[0].size == (40, 30)
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

    monkeypatch.setattr(common, "find_images", swapped)
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


class Payload:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_checkpoints_are_not_executed(kind, tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "head.pt"
    content = {"model_state": {}, "info": Payload(trace)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    load: list = [lambda: load_head(path), lambda: load_backbone("test_vit", weights=path)]
    for call in load:
        with pytest.raises(WeightsError) as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1
    assert not trace.exists()
    if kind != "zip":  # the same file does execute where nobody minds: the test can fail
        torch.load(path, weights_only=False) if kind == "legacy" else pickle.loads(
            path.read_bytes()
        )
        assert trace.exists()


@pytest.mark.parametrize("shape", [(1, 2**30, 192), (0, 2**40), (1, 3, 2**25, 2**25)])
@pytest.mark.parametrize("nested", [False, True])
def test_tensors_larger_than_their_file(shape, nested, tmp_path):
    """One number stands for all, or a side of 0 for none: what is made of them would not."""
    path = tmp_path / "weights.pth"
    tensor = torch.zeros(shape) if 0 in shape else torch.ones((), dtype=torch.half).expand(shape)
    whole = timm.create_model("test_vit", num_classes=0).state_dict()
    torch.save(
        {"encoder": {"pos_embed": tensor}} if nested else {**whole, "pos_embed": tensor}, path
    )
    held = 0 if 0 in shape else 2
    message = rf"does not fit \(pos_embed has the shape \({shape[0]}, .*\), and {held} bytes"
    with pytest.raises(WeightsError, match=message):
        load_backbone("test_vit", weights=path)
    wide = torch.ones(()).expand(128, 2**40)
    torch.save({"proj.0.weight": wide}, path)
    with pytest.raises(WeightsError, match=r"proj\.0\.weight has the shape .*, and 4 bytes"):
        load_head(path)


@pytest.mark.parametrize("other", [3, None, "x", [], {}, torch.ones(2).to_sparse()])
def test_heads_of_anything(other, tmp_path):
    for key in ("proj.0.bias", "strange"):
        torch.save({**a_head().state_dict(), key: other}, tmp_path / "head.pt")
        with pytest.raises(WeightsError, match=r"`head` must hold a PatchHead: .* does not fit"):
            load_head(tmp_path / "head.pt")


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**40, 2**63 - 1, 2**64 - 1])
def test_absurd_headers_of_safetensors(length, tmp_path):
    path = tmp_path / "head.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a":{"dtype":"F32","shape":[1],"data_off')
    with pytest.raises(WeightsError, match="`head` must be a checkpoint that safetensors can read"):
        load_head(path)
    for shape in ([2**40, 2**40], [-1], [3]):
        header = {"proj.0.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
        with pytest.raises(WeightsError, match="`head` must"):
            load_head(path)


def test_recipes_that_are_none(tmp_path):
    deep = b"a = " + b"[" * 100_000
    for data in (b"\xff\xfe", b"a = 1\n", deep, b"title = 'x'\n[train]\nsize = 1e999"):
        (tmp_path / "r.toml").write_bytes(data)
        with pytest.raises(RecipeError, match=r"r\.toml"):
            read_recipe(tmp_path / "r.toml")


# Checksums: what a disk changes is noticed, reported and made again.


def test_lines_are_sealed():
    line = json.dumps({"image": "/a/é\n.png", "n": None})
    whole = with_checksum(line)
    assert json.loads(whole) == {**json.loads(line), "crc32": f"{zlib.crc32(line.encode()):08x}"}
    assert without_checksum(whole) == line
    assert without_checksum(line) is None
    for place in range(len(whole)):
        for bit in range(7):
            changed = whole[:place] + chr(ord(whole[place]) ^ 1 << bit) + whole[place + 1 :]
            assert without_checksum(changed) is None
    for place in range(len(whole)):
        assert without_checksum(whole[:place]) is None


def test_damaged_records_are_reported_and_done_again(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    label(capsys, photos_in, out)
    file = out / "labels.jsonl"
    whole = file.read_text().splitlines()
    changed = [whole[0].replace('"error": null', '"error":  null'), whole[1], whole[2][:40] + "#"]
    changed += ["\0\0\0", whole[2].replace(', "crc32"', ', "other"')]
    file.write_text("\n".join(changed) + "\n")
    before = {path.name: path.read_bytes() for path in out.glob("*.png")}
    code, err = label(capsys, photos_in, out)
    assert code == 0
    assert err.splitlines()[0] == (
        f"4 lines are damaged in {file}, the first is line 1: what they say of images counts as "
        "not done"
    )
    assert "2 labelled, 1 already done, 0 failed" in err
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == before
    assert errors(out) == dict.fromkeys(("a.png", "b.png", "c.png"))
    code, err = label(capsys, photos_in, out)
    assert " damaged in " not in err
    assert "3 already done" in err


def test_an_earlier_record_does_not_stand_in_for_a_damaged_one(tmp_path):
    first = with_checksum(json.dumps({"image": "/a", "name": "a.png", "error": None}))
    later = with_checksum(json.dumps({"image": "/a", "name": "a.png", "error": "interrupted"}))
    path = tmp_path / "labels.jsonl"
    path.write_text(f'{first}\n{later[:-3]}0"}}\n')
    records = Records(path, "name")
    assert records.get("/a") == {}
    assert records.is_recorded("a.png", "/a")
    assert not records.reserve("a.png", "/b")
    records.close()
    assert path.read_text() == f'{later[:-3]}0"}}\n'  # until the image is done again


def test_no_name_in_the_records_leads_outside(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    label(capsys, photos_in, out)
    victim = tmp_path / "victim.png"
    victim.write_bytes(b"precious")
    for name in ("../victim.png", str(victim), "x/../../victim.png"):
        lines = []
        for line in (out / "labels.jsonl").read_text().splitlines():
            record = json.loads(without_checksum(line))
            lines.append(with_checksum(json.dumps({**record, "name": name, "error": "again"})))
        (out / "labels.jsonl").write_text("\n".join(lines[:1]) + "\n")
        label(capsys, photos_in, out)
        assert victim.read_bytes() == b"precious"
        assert (out / "a.png").is_file()


def test_damaged_annotations_are_made_again(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    label(capsys, photos_in, out, "--format", "coco")
    whole = (out / "annotations.json").read_bytes()
    file = out / "annotations/b.json"
    file.write_text(
        file.read_text()
        .replace('"iscrowd": 0', '"iscrowd": 1')
        .replace('"height": 3', '"height": 4')
    )
    code, err = label(capsys, photos_in, out, "--format", "coco")
    assert code == 0
    assert f"cannot read {file}: it holds no annotations; the image is" in err
    assert "1 labelled, 2 already done, 0 failed" in err
    assert (out / "annotations.json").read_bytes() == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_cached_tensors_have_checksums(dtype, tmp_path, capsys):
    tensor = (torch.arange(35).reshape(5, 7) % 3).to(dtype)
    cache = TensorCache(tmp_path)
    assert cache.put("abcd", tensor)
    assert torch.equal(cache.get("abcd"), tensor)
    file = tmp_path / "ab/abcd.safetensors"
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = cache.get("abcd")
        # Only a space of the header can change without a consequence.
        assert found is None or (torch.equal(found, tensor) and found.dtype == dtype), place
    assert capsys.readouterr().err == f"cache: {file} is damaged, and computed again\n"
    for data in (whole[:-1], whole[:10], b""):
        file.write_bytes(data)
        assert cache.get("abcd") is None
    (tmp_path / "ef").mkdir()
    (tmp_path / "ef/efgh.safetensors").write_bytes(whole)  # of another key
    assert cache.get("efgh") is None
    assert cache.get("none") is None


def test_training_computes_damaged_features_again(photos_in, tmp_path, capsys):
    arguments = ["train", photos_in, "--size", 96, "--epochs", 1, "--cache", tmp_path / "cache"]

    def run(out) -> str:
        code = cli.main([str(a) for a in [*arguments, "--out", out]])
        err = capsys.readouterr().err
        assert code == 0, err
        return err

    run(tmp_path / "one")
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    whole = {file: file.read_bytes() for file in files}
    for file in files:
        file.write_bytes(whole[file][:-9] + bytes([whole[file][-9] ^ 4]) + whole[file][-8:])
    err = run(tmp_path / "two")
    for file in files:
        assert f"cache: {file} is damaged, and computed again" in err
    assert {file: file.read_bytes() for file in files} == whole
    heads = [load_head(tmp_path / name / "head")[0].state_dict() for name in ("one", "two")]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


# Disks that fail.


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
    sentence = f"selfment label: [Errno 28] No space left on device: '{out}/labels.jsonl'"
    assert err.splitlines()[-1] == sentence
    assert (out / "labels.jsonl").read_text() == before
    assert "2 labelled, 1 already done, 0 failed" in label(capsys, photos_in, out)[1]


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(photos_in, tmp_path):
    """The system's own refusal to write: of one mask that is larger than the others."""
    noise = np.random.RandomState(0).randint(0, 2, (600, 600)).astype(bool)
    script = (
        "import signal, sys, numpy, resource; from selfment import cli;"
        "from selfment.jobs import label as labeling;"
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

    monkeypatch.setattr(common, "find_images", vanished)
    code, err = label(capsys, photos_in, tmp_path / "out")
    assert code == 1
    assert f"cannot read {photos_in}/b.png: no such file" in err
    assert "2 labelled, 0 already done, 1 failed" in err


# Files that a killed process leaves.


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
