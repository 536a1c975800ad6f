"""Measures how many images and features the reject option rejects, and their confidence.

Images with an object (folders with `images/`, or files) must not be rejected; images without one
(noise, one colour, gradients) must be. Prints a row for each kind and graph, for the features of
the embedded default. `docs/confidence.md` has the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from head_quality import planted
from inputs import machine, photographs
from torch import Tensor
from torch.nn import functional

import selfment
from selfment.backbones import load_backbone
from selfment.core.options import RECOMMENDED_MIN_CONFIDENCE
from selfment.images.load import load_image

NOISE = ("uniform", "Gaussian", "grey", "faint", "black and white")


def noise(kind: str, size: int, rng: torch.Generator) -> Tensor:
    """Returns a (1, 3, size, size) image of noise, independent in every pixel."""
    pixels = torch.rand(1, 3, size, size, generator=rng)
    if kind == "Gaussian":
        return (0.5 + 0.12 * torch.randn(1, 3, size, size, generator=rng)).clamp(0, 1)
    if kind == "faint":
        return 0.4 + 0.05 * pixels
    if kind == "uniform":
        return pixels
    grey = pixels[:, :1].expand(-1, 3, -1, -1)
    return (grey > 0.5).float() if kind == "black and white" else grey


def blurred(pixels: Tensor, sigma: int) -> Tensor:
    """Blurs by a Gaussian, and stretches the result over [0, 1]."""
    at = torch.arange(-3 * sigma, 3 * sigma + 1)
    kernel = torch.exp(-(at**2) / (2 * sigma**2)).expand(3, 1, 1, -1)
    for _ in range(2):
        sides = (3 * sigma, 3 * sigma, 0, 0)
        pixels = functional.conv2d(functional.pad(pixels, sides, "circular"), kernel, groups=3).mT
    low, high = pixels.aminmax()
    return (pixels - low) / (high - low)


def gradients(size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yields gradients between two colours: along an axis, the diagonal and the radius."""
    at = torch.linspace(0, 1, size)
    for weight in (
        at.expand(size, size),
        (at + at[:, None]) / 2,
        (at - 0.5).hypot(at[:, None] - 0.5),
    ):
        one, other = torch.rand(2, 1, 3, 1, 1, generator=rng)
        yield one + (other - one) * weight


def images(kind: str, size: int, seeds: int) -> Iterator[Tensor]:
    """Yields images without an object of one kind, rounded to 8 bits."""
    for seed in range(seeds):
        rng = torch.Generator().manual_seed(1000 * size + seed)
        made: Iterator[Tensor]
        if kind == "noise":
            made = (noise(name, size, rng) for name in NOISE)
        elif kind == "gradients":
            made = gradients(size, rng)
        elif kind == "one colour":
            made = iter([torch.rand(1, 3, 1, 1, generator=rng).expand(-1, -1, size, size)])
        else:
            colours, sigma = kind.split(", blurred over ")
            made = iter([blurred(noise(colours, size, rng), int(sigma))])
        for pixels in made:
            yield (pixels * 255).round() / 255


def row(
    kind: str, graph: str, inputs: Iterator[tuple[Tensor, tuple[int, int], str]]
) -> list[float]:
    """Labels the features, and prints a row of the table."""
    found = [
        float(selfment.pseudo_label(features, grid, graph=graph, orient=orient).confidence)
        for features, grid, orient in inputs
    ]
    rejected = sum(one < RECOMMENDED_MIN_CONFIDENCE for one in found)
    span = f"{min(found):.3f} to {max(found):.3f}"
    print(f"| {kind} | {graph} | {rejected} of {len(found)} | {span} |", flush=True)
    return found


def main() -> None:
    """Prints the table."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("images", nargs="*", help="files, folders, globs (default: samples)")
    parser.add_argument("--seeds", type=int, default=8, help="of each kind and size (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="F")
    arguments = parser.parse_args()
    paths = photographs(arguments.images)
    backbone = load_backbone("classic")
    rows = {}
    print("| input | graph | rejected | confidence |\n|---|---|---|---|")

    def of(pixels: Iterator[Tensor]) -> Iterator[tuple[Tensor, tuple[int, int], str]]:
        for batch in pixels:
            h, w = backbone.grid(batch.shape[2], batch.shape[3])
            yield backbone(batch)[0], (h, w), backbone.orient

    for graph in ("binary", "weighted"):
        for size in (480, 768):
            pixels = (backbone.preprocess(load_image(path)[0], size)[None] for path in paths)
            rows[f"photographs, {size}, {graph}"] = row(f"photographs at {size}", graph, of(pixels))
        kinds = ["noise", "one colour", "gradients"]
        kinds += [
            f"{colours}, blurred over {sigma}"
            for colours in ("uniform", "grey")
            for sigma in (8, 16, 32)
        ]
        for kind in kinds:
            pixels = (
                one for size in (320, 480, 768) for one in images(kind, size, arguments.seeds)
            )
            rows[f"{kind}, {graph}"] = row(kind, graph, of(pixels))
        samples = ((s.features, s.grid, s.orient) for s in planted(40, seed=3))
        rows[f"planted, {graph}"] = row("planted features", graph, samples)
        for d in (64, 384, 4096):
            rng = torch.Generator().manual_seed(d)
            features = (
                (torch.randn(side * side, d, generator=rng), (side, side), "seed")
                for side in (20, 30)
                for _ in range(arguments.seeds)
            )
            rows[f"noise, {d}, {graph}"] = row(f"features of noise, d = {d}", graph, features)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
