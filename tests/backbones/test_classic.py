"""The embedded backbones: always the same bits, and objects differ from their surroundings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from selfment import PseudoLabeler, multi_label, pseudo_label
from selfment.backbones import EMBEDDED, load_backbone
from selfment.evaluation.metrics import f_max, iou
from selfment.images.load import load_image
from selfment.images.maps import read_truth
from selfment.methods import MultiObject

THREADS = (2, 3, 4, 5, 7, 8)
SIZES = [
    (480, 480),
    (224, 224),
    (16, 16),
    (16, 320),
    (768, 32),
    (48, 1600),
    (320, 480),
    (1040, 976),
]


def scene(
    height: int, width: int, box: tuple[int, int, int, int], seed: int = 0
) -> tuple[Tensor, npt.NDArray[np.bool_]]:
    """Returns a (1, 3, H, W) image of a speckled red box on noisy greenish ground, and its mask.

    The box is from (top, left) to (bottom, right).
    """
    stream = np.random.RandomState(seed)
    coarse = torch.from_numpy(stream.uniform(0.3, 0.6, (1, 3, 5, 5)))
    ground = functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    ground = ground * torch.tensor([0.7, 1.0, 0.8])[:, None, None]
    inside = np.zeros((height, width), dtype=bool)
    top, left, bottom, right = box
    inside[top:bottom, left:right] = True
    red = torch.tensor([0.8, 0.2, 0.15], dtype=torch.float64)[:, None, None]
    pixels = torch.where(torch.from_numpy(inside), red, ground)
    speckle = torch.from_numpy(stream.uniform(-0.06, 0.06, (3, height, width)))
    pixels = (pixels + speckle).clamp(0, 1).mul(255).round() / 255
    return pixels[None].float(), inside


def of_patches(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    h, w = (side // 16 for side in inside.shape)
    halves: npt.NDArray[np.bool_] = inside.reshape(h, 16, w, 16).mean((1, 3)) > 0.5
    return halves


@pytest.mark.parametrize("name", EMBEDDED)
def test_neither_threads_nor_batch_change_a_bit(name: str) -> None:
    backbone = load_backbone(name)
    images = [scene(*size, (size[0] // 4, 0, size[0] // 2, size[1] // 2))[0] for size in SIZES]
    images += [torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))]
    images += [torch.full((1, 3, 96, 96), 0.3)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = [backbone(image) for image in images]
        for threads in THREADS:
            torch.set_num_threads(threads)
            for image, features in zip(images, expected, strict=True):
                assert torch.equal(backbone(image), features), (threads, image.shape)
    finally:
        torch.set_num_threads(before)
    together = backbone(torch.cat([images[0], images[0].flip(3), images[0]]))
    assert torch.equal(together[::2], expected[0].expand(2, -1, -1))
    for image, features in zip(images, expected, strict=True):
        assert features.shape == (1, image[0, 0].numel() // 256, 384)
        assert features.isfinite().all()


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_default_dtype_changes_no_bit(name: str) -> None:
    backbone, (image, _) = load_backbone(name), scene(320, 320, (96, 112, 224, 240))
    expected = backbone(image)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        found = backbone(image)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_pixel_that_is_not_finite_is_named(name: str, value: float) -> None:
    images = torch.cat([scene(160, 160, (48, 48, 112, 112))[0]] * 2)
    images[1, 0, 70, 70] = value
    backbone = load_backbone(name)
    features = backbone(images)
    assert torch.equal(features[0], backbone(images[:1])[0])
    with pytest.raises(ValueError, match="`features` must be finite"):
        pseudo_label(features, (10, 10))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("classic", [1.5, -1.05, 0.0097, 0.0046]), ("statistics", [-0.2426, 0.2118, 0.6331, -0.9041])],
)
def test_the_same_map_forever(name: str, expected: list[float]) -> None:
    image, _ = scene(160, 160, (48, 48, 112, 112))
    assert load_backbone(name)(image)[0, 55, :4].tolist() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    "box",
    [(96, 112, 224, 240), (60, 180, 200, 290), (20, 40, 110, 140), (150, 100, 320, 230)],
    ids=["middle", "aside", "corner", "at the border"],
)
def test_one_direction_means_object(box: tuple[int, int, int, int]) -> None:
    image, inside = scene(320, 320, box)
    backbone = load_backbone("classic")
    features, truth = backbone(image)[0], of_patches(inside)
    towards = (features[:, 0] > 0).view(20, 20).numpy()
    assert (towards == truth).mean() > 0.93
    mask = pseudo_label(features, (20, 20), orient=backbone.orient).mask.numpy()
    assert (mask & truth).sum() / (mask | truth).sum() > 0.75


def blurred(pixels: Tensor, sigma: int) -> Tensor:
    """Blurs by a Gaussian; returns (1, 3, H, W), stretched over [0, 1]."""
    at = torch.arange(-3 * sigma, 3 * sigma + 1)
    kernel = torch.exp(-(at**2) / (2 * sigma**2)).expand(3, 1, 1, -1)
    for _ in range(2):
        sides = (len(at) // 2, len(at) // 2, 0, 0)
        pixels = functional.conv2d(functional.pad(pixels, sides, "circular"), kernel, groups=3).mT
    low, high = pixels.aminmax()
    return ((pixels - low) / (high - low) * 255).round() / 255


def nothing_to_cut(size: int) -> dict[str, Tensor]:
    """Returns images without an object: noise, blurred noise, one colour, gradients."""
    rng = torch.Generator().manual_seed(3)
    noise = torch.rand(1, 3, size, size, generator=rng)
    grey = noise[:, :1].expand(-1, 3, -1, -1)
    at = torch.linspace(0, 1, size)
    a, b, c = torch.rand(3, 3, 1, 1, generator=rng)
    along, diagonal = at.expand(size, size), (at + at[:, None]) / 2
    radial = (at - 0.5).hypot(at[:, None] - 0.5)
    images = {"noise": noise, "grey noise": grey, "faint noise": 0.5 + 0.05 * noise}
    images |= {f"blurred over {sigma}": blurred(noise, sigma) for sigma in (4, 8, 16, 32)}
    images |= {f"grey, blurred over {sigma}": blurred(grey, sigma) for sigma in (16, 24)}
    images |= {"one colour": a.expand(1, 3, size, size)}
    for name, weight in (("along", along), ("diagonal", diagonal), ("radial", radial)):
        images[f"gradient, {name}"] = (a + (b - a) * weight)[None]
    images["gradient, faint"] = (0.4 + 0.1 * along).expand(1, 3, -1, -1)
    images["gradients, two"] = (a + (b - a) * along + (c - a) * along.T / 2).clamp(0, 1)[None]
    return {name: (image * 255).round() / 255 for name, image in images.items()}


@pytest.mark.parametrize("size", [480, 768])
def test_where_there_is_nothing_to_cut(size: int) -> None:
    backbone = load_backbone("classic")
    for name, image in nothing_to_cut(size).items():
        grid = backbone.grid(size)
        label = pseudo_label(backbone(image), grid, orient=backbone.orient, min_confidence=0.25)
        assert label.rejected, (name, label.confidence)


@pytest.mark.parametrize("size", [(200, 301), (300, 20), (17, 600), (64, 64)])
def test_a_whole_image_is_not_padded(size: tuple[int, int]) -> None:
    picture = Image.fromarray(np.zeros((*size, 3), dtype=np.uint8))
    pixels, content = load_backbone("classic").preprocess_whole(picture, 320)
    assert content == pixels.shape[1:]
    assert max(content) == 320
    aspect = size[0] / size[1], content[0] / content[1]
    assert all(side % 16 == 0 for side in content)
    assert min(content) == 16 or abs(min(aspect) / max(aspect) - 1) < 0.1


def test_several_objects_take_statistics() -> None:
    assert PseudoLabeler().backbone_name == "classic"
    assert PseudoLabeler(method=MultiObject(5)).backbone_name == "statistics"
    assert PseudoLabeler("classic", method=MultiObject(5)).backbone_name == "classic"


# On photographs


def photographs(photos: list[Path], name: str) -> list[tuple[Tensor, Tensor]]:
    """Yields pixels at 480 and the true mask of every second photograph of a set."""
    backbone = load_backbone("classic")
    found = []
    for path in [path for path in photos if path.parent.parent.name == name][1::2]:
        levels, _ = read_truth(path.parent.parent / "masks" / f"{path.stem}.png")
        pixels = backbone.preprocess(load_image(path)[0], 480)
        found.append((pixels[None], torch.from_numpy(levels) > 127))
    return found


@pytest.mark.parametrize(("name", "overlap", "f"), [("sod", 0.45, 0.62), ("bsds", 0.50, 0.60)])
def test_masks_of_photographs(photos: list[Path], name: str, overlap: float, f: float) -> None:
    backbone = load_backbone("classic")
    scores = []
    for pixels, truth in photographs(photos, name):
        label = pseudo_label(backbone(pixels), (30, 30), orient=backbone.orient)
        assert label.confidence > 0.25
        mask = functional.interpolate(label.mask[:, None].float(), truth.shape, mode="bilinear")
        guess = (mask[0, 0] > 0.5).float()
        scores.append((iou(guess, truth), f_max(guess, truth)))
    means = np.mean(scores, axis=0)
    assert means[0] >= overlap
    assert means[1] >= f


def test_second_objects_of_photographs(photos: list[Path]) -> None:
    backbone = load_backbone("statistics")
    found = [
        multi_label(backbone(pixels)[0], (30, 30), max_objects=5).instances.max() > 1
        for pixels, _ in photographs(photos, "sod")[::3][:24]
    ]
    assert sum(map(int, found)) >= 7
