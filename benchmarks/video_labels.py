"""Scores the labels of clips: windows of several sizes beside frames that are labelled alone.

    python benchmarks/video_labels.py FOLDER [FOLDER ...] [--size 256] [--clips 16]

The folders contain `images/` and `masks/`; the clips are made of them, so that the mask of each
frame is known:

- "zoom": a window that moves and zooms over a photograph.
- "pan": the object of a photograph crosses another one, which pans.
- "grow": the same, shaking, and the object grows from a quarter of the height to more than all of
  it, so that the side that the rule of a frame alone prefers changes.

Each frame has noise and a brightness of its own. For each kind of clip the table has the mean over
the clips of: the IoU with the truth; the IoU of neighbouring frames' masks, that of the true masks
in the first row; jumps, the number of neighbours whose masks have an IoU below one half; and
flipped, the share of windows whose classes exchanged their roles. Work is the number of pairs of
patches that the graphs have for each frame, in units of those of a frame alone. The last rows are
one cut through all frames, exact and by landmarks.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from selfment import CutOptions, IpoOptions, LandmarkOptions, PseudoLabeler, WindowOptions
from selfment.core.joint import label_frames
from selfment.core.windows import label_windows
from selfment.images.load import find_images

FRAME = (480, 320)  # (W, H) of the frames
KINDS = ("zoom", "pan", "grow")
WINDOWS = ((1, 0), (4, 1), (8, 0), (8, 1), (8, 2), (8, 4), (16, 4), (32, 8))
LANDMARKS = (None, 2500)  # of cuts through all frames

Pair = tuple[Image.Image, Image.Image]  # a photograph and its mask


@dataclass
class Clip:
    """A clip of one kind: features and true masks on the patch grid."""

    kind: str
    features: Tensor  # (frames, N, d)
    truth: Tensor  # (frames, h, w) bool


def pairs_of(folders: list[Path]) -> list[Pair]:
    """Returns the photographs that have a mask."""
    found = []
    for folder in folders:
        for entry in find_images(folder / "images"):
            mask = folder / "masks" / f"{entry.path.stem}.png"
            if mask.exists():
                found.append((Image.open(entry.path).convert("RGB"), Image.open(mask).convert("L")))
    return found


def zoomed(pair: Pair, frames: int, rng: np.random.Generator) -> list[Pair]:
    """Returns the frames of "zoom" and their masks."""
    width, height = pair[0].size
    shares, places = rng.uniform(0.7, 1, 2), rng.uniform(0, 1, (2, 2))
    made = []
    for t in np.linspace(0, 1, frames):
        share = shares[0] + (shares[1] - shares[0]) * t
        left, top = (places[0] + (places[1] - places[0]) * t) * (1 - share) * (width, height)
        part = (left, top, left + share * width, top + share * height)
        picture, mask = (image.resize(FRAME, Image.Resampling.BICUBIC, box=part) for image in pair)
        made.append((picture, mask))
    return made


def crossing(
    pair: Pair, ground: Image.Image, frames: int, rng: np.random.Generator, grows: bool
) -> list[Pair]:
    """Returns the frames of "pan" or "grow": the object of ``pair`` on a ``ground`` that moves."""
    width, height = FRAME
    box = pair[1].getbbox()
    cut, shape = (image.crop(box) for image in pair)
    wide = ground.resize((width * 13 // 10, height * 13 // 10), Image.Resampling.BICUBIC)
    scale = np.array([0.25, 1.3]) if grows else rng.uniform(0.3, 0.6) * rng.uniform(0.8, 1.3, 2)
    scale = scale * height / cut.height
    path = rng.uniform((0.25, 0.3), (0.75, 0.7), (2, 2))
    pan, shake = rng.uniform(0.1, 0.9, (2, 2)), 0.04 if grows else 0.0
    made = []
    for t in np.linspace(0, 1, frames):
        place = (pan[0] + (pan[1] - pan[0]) * t + rng.normal(0, shake, 2)).clip(0, 1)
        x, y = (place * (wide.width - width, wide.height - height)).astype(int)
        picture = wide.crop((x, y, x + width, y + height))
        size = (scale[0] + (scale[1] - scale[0]) * t) * np.array(cut.size)
        sides = max(4, int(size[0])), max(4, int(size[1]))
        at = (path[0] + (path[1] - path[0]) * t) * FRAME - size / 2
        corner = int(at[0]), int(at[1])
        thing, mask = (image.resize(sides, Image.Resampling.BICUBIC) for image in (cut, shape))
        picture.paste(thing, corner, mask)
        truth = Image.new("L", FRAME)
        truth.paste(mask, corner)
        made.append((picture, truth))
    return made


def as_clip(kind: str, made: list[Pair], model: PseudoLabeler, rng: np.random.Generator) -> Clip:
    """Returns the features of noisy frames, and the true masks on the grid."""
    noise, flicker = (10, 0.08) if kind == "grow" else (6, 0.03)
    grid = model.backbone.grid(model.size)
    features, truth = [], []
    for picture, mask in made:
        pixels = np.asarray(picture) * (1 + rng.normal(0, flicker))
        pixels = (pixels + rng.normal(0, noise, pixels.shape)).clip(0, 255).astype(np.uint8)
        frame = model.preprocess(Image.fromarray(pixels))
        features.append(model.backbone(frame[None])[0])
        levels = torch.from_numpy(np.array(mask))[None, None] > 127
        truth.append(functional.interpolate(levels.float(), grid, mode="area")[0, 0] > 0.5)
    return Clip(kind, torch.stack(features), torch.stack(truth))


def clips_of(pairs: list[Pair], model: PseudoLabeler, count: int, frames: int) -> list[Clip]:
    """Makes ``count`` clips of each kind."""
    clips = []
    for number in range(count):
        for index, kind in enumerate(KINDS):
            rng = np.random.default_rng([number, index])
            first, second = rng.choice(len(pairs), 2, replace=False)
            if kind == "zoom":
                made = zoomed(pairs[first], frames, rng)
            else:
                made = crossing(pairs[first], pairs[second][0], frames, rng, kind == "grow")
            clips.append(as_clip(kind, made, model, rng))
    return clips


def iou(ours: Tensor, theirs: Tensor) -> Tensor:
    """Returns the IoU of each of (F, h, w) masks with its partner; 1 if both are empty."""
    either = (ours | theirs).flatten(1).sum(1)
    both = (ours & theirs).flatten(1).sum(1)
    return (both / either.clamp(min=1)).where(either > 0, torch.ones_like(both).float())


def row(name: str, clips: list[Clip], masks: list[Tensor], rest: str) -> None:
    """Prints the scores of all clips by kind."""
    cells = []
    for kind in KINDS:
        chosen = [
            (clip, mask) for clip, mask in zip(clips, masks, strict=True) if clip.kind == kind
        ]
        score = statistics.mean(iou(mask, clip.truth).mean().item() for clip, mask in chosen)
        steps = [iou(mask[1:], mask[:-1]) for _, mask in chosen]
        near = statistics.mean(step.mean().item() for step in steps)
        jumps = statistics.mean((step < 0.5).sum().item() for step in steps)
        cells.append(f"{score:.3f} / {near:.3f} / {jumps:.1f}")
    print(f"| {name} | {' | '.join(cells)} | {rest} |", flush=True)


def main() -> None:
    """Prints a table for each backbone and rule of orientation."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folders", nargs="+", type=Path, help="with images/ and masks/")
    parser.add_argument("--size", type=int, default=256, help="in pixels (%(default)s)")
    parser.add_argument("--clips", type=int, default=16, help="of each kind (%(default)s)")
    parser.add_argument("--frames", type=int, default=48, help="of a clip (%(default)s)")
    arguments = parser.parse_args()
    pairs = pairs_of(arguments.folders)
    for backbone, orient in (("classic", "corners"), ("classic", "seed"), ("statistics", "seed")):
        model = PseudoLabeler(backbone, arguments.size)
        clips = clips_of(pairs, model, arguments.clips, arguments.frames)
        cut, grid = CutOptions(orient=orient), model.backbone.grid(arguments.size)
        print(f"\n`{backbone}`, `{orient}`: IoU / IoU of neighbours / jumps\n")
        print(f"| window, overlap | {' | '.join(KINDS)} | flipped | work |")
        print("|---|" + "---|" * (len(KINDS) + 2))
        row("truth", clips, [clip.truth for clip in clips], " | ")
        for window, overlap in WINDOWS:
            masks, flips, count = [], 0, 0
            for clip in clips:
                frames = ((frame, grid) for frame in clip.features)
                options = WindowOptions(window, overlap)
                found = list(label_windows(frames, options, cut, IpoOptions()))
                masks.append(torch.stack([part.mask for w in found for part in w.new_frames()]))
                flips += sum(w.flipped for w in found)
                count += len(found)
            rest = f"{flips / count:.2f} | {window**2 / (window - overlap):.1f}"
            row(f"{window}, {overlap}", clips, masks, rest)
        for landmarks in LANDMARKS:
            chosen = None if landmarks is None else LandmarkOptions(landmarks)
            joint = [
                label_frames(list(clip.features), grid, cut, IpoOptions(), landmarks=chosen)
                for clip in clips
            ]
            masks = [torch.stack(label.mask) for label in joint]
            name = "all" if landmarks is None else f"all, {landmarks} landmarks"
            row(name, clips, masks, "|")


if __name__ == "__main__":
    main()
