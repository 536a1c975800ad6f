"""One command labels by several methods and scores them; its table is that of the evaluator."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import call
from selfment import CutOptions, PseudoLabeler, evaluate
from selfment.experiments.compare import FILES, compare
from selfment.images.load import find_images
from selfment.methods import METHODS, Dsm, MultiObject, SelfMask, Selfment

TINY = "vit_tiny_patch16_224"
CLASSIC = ["selfment", "selfment-kmeans", "tokencut", "maskcut", "dsm", "selfmask"]


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Photographs with an object each, and their masks."""
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    for name, corner in (("a.png", (16, 16)), ("sub/b.jpg", (40, 50)), ("c.png", (30, 64))):
        stream = np.random.RandomState(len(name))
        pixels = stream.randint(60, 110, (96, 128, 3)).astype(np.uint8)
        inside = np.zeros((96, 128), dtype=bool)
        inside[corner[0] : corner[0] + 40, corner[1] : corner[1] + 48] = True
        pixels[inside] = stream.randint(0, 50, (inside.sum(), 3)) + np.array([190, 40, 20])
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (masks / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(photos / name)
        Image.fromarray(inside).save((masks / name).with_suffix(".png"))
    return photos, masks


def run(folders, out: Path, **options):
    photos, masks = folders
    options = {"size": 96, "progress": False, **options}
    return compare(find_images([photos]), masks, out, **options)


def test_the_command_compares_what_the_backbone_allows(folders, tmp_path, capsys):
    photos, masks = folders
    out = tmp_path / "out"
    code, printed, err = call(
        capsys, "compare", photos, "--gt", masks, "--out", out, "--size", 96, "--batch", 2
    )
    assert code == 0, err
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(CLASSIC)
    rows = {}
    for variant in CLASSIC:
        report = evaluate(out / variant, masks, protocol="paper", progress=False)
        assert len(report.images) == 3
        rows[variant] = report.scores
    lines = printed.splitlines()
    assert lines[0] == "protocol paper, 3 images"
    assert lines[1].split() == ["method", "initial", "split", "F_max", "IoU", "Acc"]
    for line, variant in zip(lines[2:8], CLASSIC, strict=True):
        method, *_ = variant.split("-")
        cells = line.split()
        assert cells[0] == method
        assert cells[-3:] == [f"{score:.4f}" for score in rows[variant].values()]
    assert "note: `method` 'found' needs a ViT's attention, left out" in lines
    assert "note: `method` 'selfment-cls' needs a ViT's CLS token, left out" in lines
    assert (out / FILES["text"]).read_text() == printed

    found = json.loads((out / FILES["json"]).read_text())
    assert found["protocol"] == "paper"
    assert [row["scores"] for row in found["rows"]] == [rows[variant] for variant in CLASSIC]
    assert [row["init"] for row in found["rows"]] == ["ncut", "kmeans", None, None, None, None]
    table = list(csv.DictReader((out / FILES["csv"]).open()))
    assert [float(row["IoU"]) for row in table] == [rows[variant]["IoU"] for variant in CLASSIC]
    assert {row["images"] for row in table} == {"3"}
    markdown = (out / FILES["markdown"]).read_text().splitlines()
    headings, rule, *_, last = ([c.strip() for c in line.split("|")] for line in markdown[2:])
    assert headings == ["", "method", "initial split", "F_max", "IoU", "Acc", ""]
    assert [cell.endswith("-:") for cell in rule[1:-1]] == [False, False, True, True, True]
    scores = [f"{score:.4f}" for score in rows["selfmask"].values()]
    assert last == ["", "selfmask", "", *scores, ""]
    latex = (out / FILES["latex"]).read_text().splitlines()
    assert latex[1] == r"\begin{tabular}{llrrr}"
    assert latex[3] == r"method & initial split & F\_max & IoU & Acc \\"
    assert len(latex) == 13


@pytest.mark.slow
def test_masks_are_those_of_the_labelers(folders, tmp_path):
    methods = [Dsm(), Selfment(CutOptions(tau=0.3, orient="seed")), "selfment-kmeans"]
    run(folders, tmp_path / "out", methods=methods)
    expected = {
        labeler.method.name: labeler
        for labeler in (PseudoLabeler(size=96, method=method) for method in methods)
    }
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == set(expected)
    rows, columns = ((2 * np.arange(side) + 1) * 6 // (2 * side) for side in (96, 128))
    for variant, labeler in expected.items():
        mask = labeler(folders[0] / "sub/b.jpg").mask.numpy()[np.ix_(rows, columns)]
        written = np.asarray(Image.open(tmp_path / "out" / variant / "sub/b.png"))
        assert np.array_equal(written, mask * 255)


@pytest.mark.slow
def test_a_least_confidence_reaches_the_labels_that_have_one(folders, tmp_path, capsys):
    photos, masks = folders
    out = tmp_path / "out"
    arguments = ["compare", photos, "--gt", masks, "--out", out, "--size", 96]
    code, _, err = call(capsys, *arguments, "--min-confidence", 0.999)
    assert code == 0, err
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(CLASSIC)
    for variant in CLASSIC:
        lines = (out / variant / "labels.jsonl").read_text().splitlines()
        rejected = {json.loads(line)["rejected"] for line in lines}
        assert rejected == {variant == "selfment"}, variant


def test_a_second_run_labels_nothing(folders, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = run(folders, out, methods=["tokencut", "dsm"])
    calls = []
    original = PseudoLabeler.start_batch
    monkeypatch.setattr(
        PseudoLabeler,
        "start_batch",
        lambda self, batch: calls.append(self.method.name) or original(self, batch),
    )
    again = run(folders, out, methods=["tokencut", "dsm"])
    assert calls == []
    assert again.to_json() == first.to_json()
    (out / "dsm/a.png").unlink()
    run(folders, out, methods=["tokencut", "dsm", "maskcut"])
    assert calls == ["dsm", "maskcut"]


@pytest.mark.slow
def test_a_vit_is_loaded_once_and_compared_by_all(folders, tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    torch.save(timm.create_model(TINY, pretrained=False).state_dict(), tmp_path / "tiny.pth")
    from selfment.models import image_model as _model

    loaded = []
    original = _model.load_backbone
    monkeypatch.setattr(
        _model, "load_backbone", lambda name, **kw: loaded.append(name) or original(name, **kw)
    )
    options = {"backbone": TINY, "weights": tmp_path / "tiny.pth", "features": "keys", "size": 64}
    found = run(folders, tmp_path / "out", **options)
    assert loaded == [TINY]
    assert list(found.reports) == list(METHODS)
    assert found.notes == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["found"]}, "`method` 'found' needs a ViT's attention: got .* 'classic'"),
        ({"methods": ["selfment-cls"]}, "'selfment-cls' needs a ViT's CLS token: got .* 'classic'"),
        ({"methods": ["lost"]}, "`method` must be 'selfment' or .*: got 'lost'"),
        ({"methods": []}, r"`methods` must be one method at least: got \[\]"),
        ({"methods": ["dsm"], "size": 90}, "`size` must be a multiple of 16"),
        (
            {"methods": [MultiObject(3)]},
            "`methods` must make one mask of each image: got 'objects'",
        ),
        (
            {"methods": [Selfment(), Selfment(min_confidence=0.5)]},
            "`methods` must have different names: got 'selfment' twice",
        ),
    ],
)
def test_mistakes_come_before_any_label(folders, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(folders, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_images_that_cannot_be_compared(folders, tmp_path, capsys):
    photos, masks = folders
    out = tmp_path / "out"
    run(folders, out, methods=["dsm"])
    images = find_images([photos])[:2]
    message = r"`out` must hold the masks of these images alone: got 3 masks in .*dsm for 2 images"
    with pytest.raises(ValueError, match=message):
        compare(images, masks, out, size=96, methods=["dsm"], allow_missing=True, progress=False)
    message = r"`images` must hold one photograph for each ground truth: 1 ground truth \(sub/b\)"
    with pytest.raises(ValueError, match=message):
        compare(images, masks, tmp_path / "new", size=96, methods=["dsm"], progress=False)
    assert not (tmp_path / "new").exists()
    (photos / "d.png").write_text("not an image")
    message = "all images must be labelled to be compared: 1 of 4 failed, see .*dsm/labels.jsonl"
    with pytest.raises(ValueError, match=message):
        run(folders, out, methods=["dsm"], allow_missing=True)
    (photos / "d.png").unlink()
    (masks / "a.png").unlink()
    arguments = ["compare", photos, "--gt", masks, "--out", out, "--size", 96, "--methods", "dsm"]
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "1 photograph (a) without a ground truth" in err
    code, printed, _ = call(capsys, *arguments, "--allow-missing")
    assert (code, printed.splitlines()[0]) == (0, "protocol paper, 2 images")


@pytest.mark.slow
def test_label_takes_a_method(folders, tmp_path, capsys):
    photos, _ = folders
    options = ("--size", 96, "--method", "selfmask")
    assert call(capsys, "label", photos, "--out", tmp_path / "out", *options)[0] == 0
    record = json.loads((tmp_path / "out/labels.jsonl").read_text().splitlines()[0])
    labels = PseudoLabeler(size=96, method="selfmask")(record["path"])
    assert record["foreground"] == labels.mask.float().mean().item()
    more = PseudoLabeler(size=96, method=SelfMask(["classic"]))
    arguments = ["label", photos, "--out", tmp_path / "more", *options, "--voters", "classic"]
    assert call(capsys, *arguments)[0] == 0
    record = json.loads((tmp_path / "more/labels.jsonl").read_text().splitlines()[0])
    assert record["foreground"] == more(record["path"]).mask.float().mean().item()
    code, _, err = call(capsys, *arguments[:4], "--size", 96, "--voters", TINY)
    assert code == 2
    assert f"`voters` is no option of the method 'selfment': got ['{TINY}']" in err
    arguments = ["label", photos, "--out", tmp_path / "no", "--method"]
    for words, sentence in {
        ("selfment-cls",): "'selfment-cls' needs a ViT's CLS token: got the backbone 'classic'",
        ("selfment-kmeans", "--min-confidence", 0.5): "`min_confidence` is no option of the method",
        ("tokencut", "--tau", 0.3): "`tau` is no option of the method 'tokencut': got 0.3",
        (
            "maskcut",
            "--orient",
            "seed",
        ): "`orient` is no option of the method 'maskcut'",
        ("dsm", "--graph", "weighted"): "`graph` is no option of the method 'dsm': got 'weighted'",
        ("found",): "`method` 'found' needs a ViT's attention: got the backbone 'classic'",
        ("dsm", "--objects", 3): "`objects` is no option of the method 'dsm'",
        ("selfment", "--objects", 3, "--min-confidence", 0.5): "option of the method 'objects'",
    }.items():
        code, _, err = call(capsys, *arguments, *words)
        assert code == 2
        assert sentence in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "no").exists()


def test_mistakes_of_the_command(folders, tmp_path, capsys) -> None:
    photos, masks = folders
    command = ("compare", photos, "--gt", masks, "--size", 96)
    for out in (masks, masks / "compared"):
        code, _, err = call(capsys, *command, "--out", out)
        assert (code, "`out` must be no folder of ground truths, which `gt` is" in err) == (2, True)
    options = ("--methods", "tokencut", "--tau", 0.3, "--out", tmp_path / "out")
    code, _, err = call(capsys, *command, *options)
    assert (code, "`tau` is no option of the method 'tokencut': got 0.3" in err) == (2, True)
