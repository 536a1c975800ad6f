"""PseudoLabeler: one image, a list, a batch dict and a pickle give the same labels."""

from __future__ import annotations

import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.vits import DINOV2
from selfment import CutOptions, PatchHead, PseudoLabeler, PseudoLabels, Segmenter, pseudo_label
from selfment.images.draw import CAPTION, GAP, overlay, tint
from selfment.images.load import ImageError, sample_images
from selfment.methods import MultiObject, Selfment

FIELDS = [field.name for field in fields(PseudoLabels)]
PATHS = [entry.path for entry in sample_images()][:3]


@pytest.fixture(scope="module")
def labeler():
    return PseudoLabeler(size=160, batch_size=2)


@pytest.fixture(scope="module")
def labels(labeler):
    return labeler(PATHS)


def assert_same(found, expected, index=None):
    for name in FIELDS:
        wanted = getattr(expected, name)
        wanted = wanted if index is None else wanted[index]
        assert torch.equal(torch.as_tensor(getattr(found, name)), wanted), name


def test_a_list_is_batched_over_chunks(labels):
    assert labels.mask.shape == (3, 10, 10)
    assert labels.mask.dtype == torch.bool
    assert labels.fiedler.dtype == torch.float32
    assert labels.eigenvalue.shape == (3,)


def test_an_image_in_any_form_has_no_batch_axis(labeler, labels):
    picture = Image.open(PATHS[1])
    for given in (PATHS[1], str(PATHS[1]), picture, np.asarray(picture)):
        assert_same(labeler(given), labels, 1)


def test_it_is_backbone_and_pseudo_label(labeler, labels):
    batch = torch.stack([labeler.preprocess(Image.open(path)) for path in PATHS])
    assert_same(pseudo_label(labeler.backbone(batch), (10, 10), orient="corners"), labels)


def test_a_batch_dict_of_images_of_many_sizes(labeler, labels):
    arrays = [np.asarray(Image.open(path)) for path in PATHS]
    column = np.empty(3, dtype=object)
    column[:] = arrays
    found = labeler({"image": column, "id": np.arange(3)})
    assert set(found) == {"image", "id", *FIELDS}
    assert all(isinstance(found[name], np.ndarray) for name in FIELDS)
    assert np.array_equal(found["mask"], labels.mask.numpy())
    assert np.array_equal(found["fiedler"], labels.fiedler.numpy())
    same = labeler({"image": np.stack([arrays[0], arrays[0]])})
    assert np.array_equal(same["mask"][1], labels.mask[0].numpy())


def test_a_batch_dict_of_paths(labeler, labels):
    found = labeler({"path": np.array([str(path) for path in PATHS])})
    assert np.array_equal(found["mask"], labels.mask.numpy())


def test_the_bytes_of_files(labeler, labels):
    """As tar files and tables hold them, the latter in a mapping with the path, too."""
    data = [path.read_bytes() for path in PATHS]
    assert_same(labeler(data[0]), labels, 0)
    column = [{"bytes": data[0], "path": None}, {"bytes": None, "path": str(PATHS[1])}, data[2]]
    found = labeler({"image": column})
    assert np.array_equal(found["mask"], labels.mask.numpy())
    with pytest.raises(ImageError, match="cannot read the image: not an image that Pillow knows"):
        labeler(b"not an image")


def test_pickling_drops_the_model(labeler, labels):
    data = pickle.dumps(labeler)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert_same(copy(PATHS[0]), labels, 0)


def test_the_orientation_is_the_backbones_unless_given():
    assert PseudoLabeler().method.cut.orient == "corners"
    chosen = Selfment(CutOptions(orient="seed"))
    assert PseudoLabeler(method=chosen).method.cut.orient == "seed"
    assert PseudoLabeler("vit_tiny_patch16_224").method.cut.orient == "seed"


def test_settings_tell_runs_apart():
    plain = PseudoLabeler().settings
    assert plain == PseudoLabeler(batch_size=3, device="cpu").settings
    assert PseudoLabeler(method=Selfment()).settings == plain
    for change in ({"size": 160}, {"method": Selfment(CutOptions(tau=0.3))}, {"method": "dsm"}):
        assert PseudoLabeler(**change).settings != plain


def test_threads_are_left_alone(labeler):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        labeler(PATHS[0])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "`size` must be an integer >= 1: got 0"),
        ({"method": PseudoLabeler}, "`method` must be 'selfment' or .*: got <class"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1: got 0"),
        ({"dtype": "int4"}, "`dtype` must be one of .*: got 'int4'"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabeler(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": float("nan")}, "`tau` must be a finite number: got nan"),
        ({"tau": 2}, "`tau` must be at most 1, the largest similarity of patches: got 2"),
        ({"eps": 0}, r"`eps` must be in \[1e-30, 1\): got 0"),
        ({"graph": "dense"}, "`graph` must be 'binary' or 'weighted': got 'dense'"),
        ({"orient": "centre"}, "`orient` must be 'seed' or 'corners': got 'centre'"),
    ],
)
def test_wrong_options_of_a_cut(options, message):
    for method in (Selfment, MultiObject):
        with pytest.raises(ValueError, match=message):
            method(cut=CutOptions(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 100}, "`size` must be a multiple of 16, .*: got 100; the nearest is 96 or 112"),
        ({"device": "gpu"}, "`device` must be a torch device such as 'cpu': got 'gpu'"),
        ({"device": "cuda:99"}, "`device` must exist: got 'cuda:99'"),
    ],
)
def test_wrong_arguments_that_the_first_use_finds(options, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabeler(**options)(PATHS[0])


def test_wrong_inputs(labeler, tmp_path):
    with pytest.raises(ValueError, match="must have the column 'image' or 'path': got 'picture'"):
        labeler({"picture": []})
    with pytest.raises(ValueError, match="`images` must not be empty"):
        labeler([])
    with pytest.raises(ImageError, match=r"absent\.png: no such file"):
        labeler([PATHS[0], tmp_path / "absent.png"])


def test_one_pixel_image(labeler):
    found = labeler(np.zeros((1, 1, 3), dtype=np.uint8))
    assert found.mask.shape == (10, 10)
    assert torch.isfinite(found.fiedler).all()


def test_overlay_has_four_panels(labeler, labels):
    picture = Image.new("RGB", (60, 40), (100, 120, 140))
    only = labeler(PATHS[0])
    row = overlay(picture, only)
    assert row.size == (4 * 60 + 3 * GAP, CAPTION + 40)
    assert row.getpixel((10, CAPTION + 10)) == (100, 120, 140)
    last = row.crop((3 * (60 + GAP), CAPTION, *row.size))
    assert last.tobytes() == tint(picture, only.mask).tobytes()
    captions = [row.crop((left, 0, left + 60, CAPTION)) for left in range(0, row.width, 60 + GAP)]
    assert len({caption.tobytes() for caption in captions}) == 4
    assert all(caption.getextrema()[0] == (0, 255) for caption in captions)
    wide = overlay(Image.new("RGB", (3000, 1)), only, max_side=300)
    assert wide.size == (1200 + 3 * GAP, CAPTION + 1)
    with pytest.raises(ValueError, match=r"`labels` must be those of one image.*\(3, 10, 10\)"):
        overlay(picture, labels)


def test_the_default_size_fits_the_patches_and_others_are_refused_before_loading():
    sizes = {name: PseudoLabeler(name).size for name in (DINOV2, "vit_tiny_patch16_224", "classic")}
    assert sizes == {DINOV2: 770, "vit_tiny_patch16_224": 768, "classic": 768}
    assert Segmenter(PatchHead(384), DINOV2).size == 1540
    sentence = "`size` must be a multiple of 14, the patch size of .*: got 768; the nearest is 756"
    with pytest.raises(ValueError, match=sentence):
        PseudoLabeler(DINOV2, 768)
