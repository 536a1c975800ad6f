"""Methods in a labeler: what they need of a ViT, their settings, runs over folders, training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.method_cases import clusters, found_of, vote
from helpers.vits import TINY
from selfment import CutOptions, IpoOptions, PseudoLabeler
from selfment.backbones import load_backbone
from selfment.core.options import NO_IPO
from selfment.images.load import find_images
from selfment.jobs.label import label_images
from selfment.methods import (
    METHODS,
    MultiObject,
    SelfMask,
    Selfment,
    SelfmentCls,
    SelfmentKmeans,
)
from selfment.methods.splits import cls_split


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(TINY, pretrained=False, dynamic_img_size=True)
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture
def picture(tmp_path) -> Path:
    pixels = np.random.RandomState(0).randint(60, 90, (60, 80, 3)).astype(np.uint8)
    pixels[20:40, 30:60] = (220, 60, 30)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in/photo.png")
    return tmp_path / "in/photo.png"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", "keys"])
def test_a_vit_gives_what_found_and_cls_need(weights, picture, kind):
    options = {"features": kind, "weights": weights, "batch_size": 1}
    found = PseudoLabeler(TINY, 96, method="found", **options)
    given = found.backbone.attend(found.preprocess(Image.open(picture))[None])
    expected = found_of(given.features[0], given.attention[0], kind == "keys")
    assert np.array_equal(found(picture).mask.flatten().numpy(), expected)
    cls = PseudoLabeler(TINY, 96, method="selfment-cls", **options)
    start = cls_split(given.features[0], given.cls[0])
    assert np.array_equal(cls(picture).ncut_mask.flatten().numpy(), start)
    for labeler in (found, cls):
        with pytest.raises(ValueError, match=r"needs a ViT's .*: got patch features alone"):
            labeler.label_features(given.features)


@pytest.mark.slow
def test_more_backbones_vote(weights, picture):
    import pickle

    votes = PseudoLabeler(size=224, method=SelfMask({TINY: weights}))
    with Image.open(picture) as opened:
        pixels = [
            load_backbone(name, weights=file).preprocess(opened, 224)[None]
            for name, file in (("classic", None), (TINY, weights))
        ]
    ours = load_backbone("classic")(pixels[0])[0]
    theirs = load_backbone(TINY, weights=weights)(pixels[1])[0]
    candidates = [clusters(rows, (14, 14)) for rows in (ours, theirs)]
    found = votes(picture)
    assert np.array_equal(found.mask.numpy(), vote([mask for part in candidates for mask in part]))
    assert torch.equal(pickle.loads(pickle.dumps(votes))(picture).mask, found.mask)
    assert votes.settings != PseudoLabeler(size=224, method="selfmask").settings
    with pytest.raises(ValueError, match="`voters` need the images: got patch features alone"):
        votes.label_features(ours[None])
    with pytest.raises(ValueError, match="`voters` must be a list or a mapping of names: got 'x'"):
        SelfMask("x")


@pytest.mark.parametrize("method", ["maskcut", "dsm", "selfmask", "selfment-kmeans"])
def test_the_folder_job(method, picture, tmp_path):
    labeler = PseudoLabeler(size=160, method=method)
    out = tmp_path / "out"
    summary = label_images(find_images([picture]), out, labeler, overlays=True, progress=False)
    assert (summary.labelled, summary.failed) == (1, 0)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    record = json.loads((out / "labels.jsonl").read_text(), parse_constant=refuse)
    assert (record["eigenvalue"] is None) == (method in ("selfmask", "selfment-kmeans"))
    assert record["foreground"] == labeler(picture).mask.float().mean().item()
    assert (out / record["overlay"]).is_file()
    again = label_images(find_images([picture]), out, PseudoLabeler(size=160), progress=False)
    assert again.labelled == 1  # the labels of another method are not these


CHANGED = [
    Selfment(CutOptions(tau=0.3)),
    Selfment(CutOptions(eps=1e-4)),
    Selfment(CutOptions(graph="weighted")),
    Selfment(CutOptions(orient="corners")),
    Selfment(ipo=IpoOptions(iters=3)),
    Selfment(ipo=IpoOptions(min_count=3)),
    Selfment(min_confidence=0.5),
    SelfmentKmeans(NO_IPO),
    SelfmentCls(NO_IPO),
    SelfMask(["classic"]),
    MultiObject(),
    MultiObject(4),
    MultiObject(cut=CutOptions(orient="seed")),
]


def test_settings_tell_methods_apart():
    made = [PseudoLabeler(TINY, method=method) for method in METHODS]
    made += [PseudoLabeler(TINY, method=method) for method in CHANGED]
    assert len({json.dumps(labeler.settings, sort_keys=True) for labeler in made}) == len(made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lost"}, "`method` must be 'selfment' or .*'found': got 'lost'"),
        (
            {"method": "found"},
            "`method` 'found' needs a ViT's attention: got the backbone 'classic'",
        ),
        (
            {"method": SelfmentCls()},
            "`method` 'selfment-cls' needs a ViT's CLS token: got the backbone 'classic'",
        ),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabeler(**options)


def test_training_keeps_features_alone(picture, tmp_path):
    from selfment.training.run import train

    labeler = PseudoLabeler(TINY, method="found")
    message = "`method` 'found' needs a ViT's attention: got patch features alone, which training"
    with pytest.raises(ValueError, match=message):
        train(find_images([picture]), tmp_path / "run", labeler, progress=False)


def test_training_on_another_methods_labels(picture, tmp_path):
    from selfment.training.run import train

    labeler = PseudoLabeler(size=96, method="dsm")
    done = train(find_images([picture]), tmp_path / "run", labeler, epochs=1, progress=False)
    assert (done.images, done.failed) == (1, 0)
    head = json.loads((done.head / "config.json").read_text())
    assert "dsm" in json.dumps(head)


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        (Selfment, {"cut": 0.3}, "`cut` must be of the class CutOptions: got 0.3"),
        (Selfment, {"cut": None}, "`cut` must be of the class CutOptions: got None"),
        (Selfment, {"ipo": 5}, "`ipo` must be of the class IpoOptions: got 5"),
        (MultiObject, {"cut": 0.3}, "`cut` must be of the class CutOptions: got 0.3"),
        (SelfmentKmeans, {"ipo": None}, "`ipo` must be of the class IpoOptions: got None"),
        (SelfMask, {"voters": None}, "`voters` must be a list or a mapping of names: got None"),
    ],
)
def test_options_of_a_wrong_kind(kind, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(**options)
    assert hash(SelfMask(["classic"])) == hash(SelfMask(("classic",)))
