"""Hostile checkpoints and recipes, damaged records and caches."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zlib
from pathlib import Path

import pytest
import timm
import torch

from helpers.commands import errors, label
from helpers.heads import a_head
from helpers.training import run
from selfment.backbones import WeightsError, load_backbone
from selfment.experiments.recipes import RecipeError, read_recipe
from selfment.jobs.records import Records
from selfment.models.head import load_head
from selfment.training.cache import TensorCache
from selfment.util.lines import with_checksum, without_checksum


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
    options = {"epochs": 1, "cache": tmp_path / "cache"}
    run(photos_in, tmp_path / "one", **options)
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    whole = {file: file.read_bytes() for file in files}
    for file in files:
        file.write_bytes(whole[file][:-9] + bytes([whole[file][-9] ^ 4]) + whole[file][-8:])
    run(photos_in, tmp_path / "two", **options)
    err = capsys.readouterr().err
    for file in files:
        assert f"cache: {file} is damaged, and computed again" in err
    assert {file: file.read_bytes() for file in files} == whole
    heads = [load_head(tmp_path / name / "head")[0].state_dict() for name in ("one", "two")]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
