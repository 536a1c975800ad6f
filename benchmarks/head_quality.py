"""Scores each step: initial mask (NCut), mask after IPO, and head, on images not trained on.

Without arguments it uses planted features, whose true mask is known; with folders that contain
`images/` and `masks/`, photographs with the `classic` features. The head is trained on the
pseudo-labels of one part of the images, for whole epochs, and all three are scored on the other
part. F_max and IoU are the paper's, averaged over images; a mask is a saliency map of 0 and 1.

Planted features: all images share three foreground and five background prototypes, each a random
direction plus one that is common to its kind. The true mask of an image is two smooth blobs of one
foreground prototype. Two or three background prototypes share the rest, along the contours of a
smooth field. 4 % of the patches are outliers, half a random direction. Each image adds clutter, two
directions of its own along smooth fields, and each patch adds noise. NCut keeps one connected blob,
IPO finds the other, and the head learns what the images have in common.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from inputs import machine
from torch import Tensor
from torch.nn import functional

import selfment
from selfment.evaluation.metrics import f_max, iou
from selfment.images.load import find_images, load_image
from selfment.images.maps import read_truth
from selfment.models.labeler import PseudoLabeler
from selfment.training.loop import fit

STEPS = ("NCut", "IPO", "head")

COMMON, CLUTTER, NOISE, OUTLIERS = 1.0, 0.32, 1.4, 0.04  # scales and share of the planted features


@dataclass
class Sample:
    """The features of an image, and its true mask."""

    features: Tensor  # (N, d)
    grid: tuple[int, int]
    orient: str
    truth: Tensor  # (H, W) bool
    labels: Tensor | None = None  # (N,) bool, the pseudo-label


def smooth_field(h: int, w: int, cells: int, rng: torch.Generator) -> Tensor:
    """Returns an (h, w) field of mean zero and deviation 1, varying over ``cells`` cells a side."""
    coarse = torch.randn(1, 1, cells, cells, generator=rng)
    field = functional.interpolate(coarse, (h, w), mode="bicubic", align_corners=True)[0, 0]
    return (field - field.mean()) / field.std()


def planted(count: int, seed: int, h: int = 32, w: int = 32, d: int = 128) -> list[Sample]:
    """Generates planted features, see above; the prototypes do not depend on ``seed``."""
    shared = torch.Generator().manual_seed(0)
    common = functional.normalize(torch.randn(2, d, generator=shared), dim=1)
    own = functional.normalize(torch.randn(8, d, generator=shared), dim=1)
    prototypes = own + COMMON * torch.cat([common[:1].expand(3, -1), common[1:].expand(5, -1)])
    prototypes = functional.normalize(prototypes, dim=1)
    rng = torch.Generator().manual_seed(seed)
    samples = []
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    for _ in range(count):
        blob = torch.zeros(h, w, dtype=torch.bool)
        side = 1 if torch.rand((), generator=rng) < 0.5 else -1
        for sign in (-1, 1):
            across, along = torch.rand(2, generator=rng)
            distance = (y - (along - 0.5)) ** 2 + (x - sign * (0.3 + 0.25 * across)) ** 2
            bump = torch.exp(-(9 if sign == side else 16) * distance)
            blob |= bump + 0.08 * smooth_field(h, w, 6, rng) > 0.5
        kinds = 3 + torch.randperm(5, generator=rng)[: int(torch.randint(2, 4, (), generator=rng))]
        field = smooth_field(h, w, 3, rng)
        cuts = torch.quantile(field.flatten(), torch.arange(1, len(kinds)) / len(kinds))
        region = kinds[torch.bucketize(field, cuts)]
        thing = int(torch.randint(3, (), generator=rng))
        features = prototypes[torch.where(blob, thing, region)]
        strange = torch.rand(h, w, 1, generator=rng) < OUTLIERS
        wild = functional.normalize(torch.randn(h, w, d, generator=rng), dim=-1)
        features = torch.where(strange, 0.7 * features + 0.7 * wild, features)
        clutter = functional.normalize(torch.randn(2, d, generator=rng), dim=1)
        for direction in clutter:
            features = features + CLUTTER * smooth_field(h, w, 4, rng)[..., None] * direction
        features = features + NOISE * torch.randn(h, w, d, generator=rng) / d**0.5
        samples.append(Sample(features.flatten(0, 1), (h, w), "seed", blob))
    return samples


def photographs_with_masks(folders: list[Path], size: int) -> list[Sample]:
    """Loads `classic` features and true mask of every photograph, in the order of their names."""
    labeler = PseudoLabeler("classic", size)
    samples = []
    for folder in folders:
        for entry in find_images([folder / "images"]):
            picture, _ = load_image(entry.path)
            levels, _ = read_truth(folder / "masks" / f"{entry.path.stem}.png")
            features = labeler.backbone(labeler.preprocess(picture)[None])[0]
            truth = torch.from_numpy(levels) > 127
            grid = labeler.backbone.grid(size)
            samples.append(Sample(features, grid, labeler.backbone.orient, truth))
    return samples


class Labelled:
    """The training part: features and pseudo-labels, without the true masks."""

    def __init__(self, samples: list[Sample]) -> None:
        """Labels each sample."""
        self.samples = samples
        self.labels = [label(sample).mask.flatten() for sample in samples]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.samples)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """Returns features and pseudo-label."""
        return self.samples[index].features, self.labels[index]


def label(sample: Sample) -> selfment.PseudoLabels:
    """Returns the pseudo-label of one image."""
    return selfment.pseudo_label(sample.features, sample.grid, orient=sample.orient)


def scores(samples: list[Sample], head: selfment.PatchHead) -> dict[str, tuple[float, float]]:
    """Returns mean IoU and F_max of each step."""
    rows: dict[str, list[tuple[float, float]]] = {step: [] for step in STEPS}
    for sample in samples:
        labels = label(sample)
        with torch.no_grad():
            saliency = head.saliency(sample.features).view(sample.grid)
        for step, given in zip(STEPS, (labels.ncut_mask, labels.mask, saliency), strict=True):
            resized = functional.interpolate(
                given[None, None].float(), sample.truth.shape, mode="bilinear"
            )[0, 0]
            # Masks stay binary; the head's saliency is resized, as prediction writes it.
            final = resized if given.is_floating_point() else (resized > 0.5).float()
            rows[step].append((iou(final, sample.truth), f_max(final, sample.truth)))
    return {
        step: (statistics.mean(a for a, _ in found), statistics.mean(b for _, b in found))
        for step, found in rows.items()
    }


def run(name: str, train: list[Sample], test: list[Sample], steps: int) -> dict[str, object]:
    """Trains and scores; prints three rows of the table."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(111)
        head = selfment.PatchHead(train[0].features.shape[1])
    fit(head, Labelled(train), epochs=-(-steps // len(train)))
    found = scores(test, head)
    for step, (overlap, f) in found.items():
        print(f"| {name} | {step} | {overlap:.3f} | {f:.3f} |", flush=True)
    return {"name": name, "train": len(train), "test": len(test), "scores": found}


def main() -> None:
    """Prints the table."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folders", nargs="*", type=Path, help="with images/ and masks/")
    parser.add_argument("--sizes", type=int, nargs="+", default=[480, 768], help="in pixels")
    steps = "as in the paper, 3 epochs of 1000 images (%(default)s)"
    parser.add_argument("--steps", type=int, default=3000, help=steps)
    parser.add_argument("--json", type=Path, metavar="F")
    arguments = parser.parse_args()
    print("| data | step | IoU | F_max |\n|---|---|---|---|")
    rows = []
    if not arguments.folders:
        train, test = planted(200, seed=1), planted(60, seed=2)
        rows.append(run("planted, 200 + 60 images", train, test, arguments.steps))
    for size in arguments.sizes if arguments.folders else ():
        samples = photographs_with_masks(arguments.folders, size)
        # Alternately, so that both parts have images of every folder.
        train, test = samples[::2], samples[1::2]
        name = f"photographs at {size}, {len(train)} + {len(test)} images"
        rows.append(run(name, train, test, arguments.steps))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
