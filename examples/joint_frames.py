"""Labels the frames of a clip by one cut, with the same foreground in all of them.

    python examples/joint_frames.py [FRAME ...] [--backbone classic] [--out FOLDER]

Without frames it generates a clip: a disc grows until it fills most of the picture. In the last
frame alone, the cut then selects the remaining background as the object.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from selfment import PseudoLabeler, joint_label, pseudo_label
from selfment.images.draw import overlay
from selfment.images.load import load_image


def clip(frames: int = 5, side: int = 320) -> list[Image.Image]:
    """Generates a noisy disc on noisy ground; its radius grows from 3/16 of the side to 7/16."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side] - side / 2
    ground = np.array([60, 110, 60]) + rng.normal(0, 12, (side, side, 3))
    disc = np.array([210, 120, 50]) + rng.normal(0, 25, (side, side, 1))
    pictures = []
    for radius in np.linspace(3, 7, frames) * side / 16:
        inside = rows**2 + columns**2 < radius**2
        pixels = np.where(inside[..., None], disc, ground)
        pictures.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return pictures


def main() -> None:
    """Labels the frames together and one by one, and draws the joint labels into ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("frames", nargs="*", type=Path, help="images, in any order")
    parser.add_argument("--backbone", default="classic", help="or any plain ViT of timm")
    parser.add_argument("--size", type=int, default=320, help="pixels, a multiple of the patch")
    parser.add_argument("--orient", default="seed", help="seed or corners, as for pseudo_label")
    parser.add_argument("--out", type=Path, help="a folder for pictures of the labels")
    arguments = parser.parse_args()

    labeler = PseudoLabeler(arguments.backbone, arguments.size)
    pictures = [load_image(path)[0] for path in arguments.frames] or clip()
    pixels = torch.stack([labeler.preprocess(picture) for picture in pictures])
    features = labeler.backbone(pixels)
    grid = labeler.backbone.grid(arguments.size)
    joint = joint_label(features, grid, orient=arguments.orient)
    alone = pseudo_label(features, grid, orient=arguments.orient)

    print(f"{len(pictures)} frames of {grid[0]} x {grid[1]}: Ncut {joint.eigenvalue:.4f}")
    for i, picture in enumerate(pictures):
        shares = [label.mask[i].float().mean().item() for label in (joint, alone)]
        agree = (joint.mask[i] == alone.mask[i]).float().mean().item()
        print(f"frame {i}: {shares[0]:.0%} foreground, {shares[1]:.0%} alone, {agree:.0%} agree")
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            overlay(picture, joint.frame(i)).save(arguments.out / f"frame{i:04}.jpg")


if __name__ == "__main__":
    main()
