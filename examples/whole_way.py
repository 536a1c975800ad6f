"""Goes the whole way: labels, a look at them, a head, predictions, scores, and a model to deploy.

    python examples/whole_way.py
    python examples/whole_way.py --photos photos/ --masks masks/ --backbone NAME --size 768

It prints each command before it runs it; all results are in the folder `--out`. Without `--photos`
it cuts 100 pieces out of the photographs that scikit-image ships. Without `--backbone` nothing is
downloaded: `classic` labels, and the head is trained on `PatchColours` below, an own model in a few
lines. Without `--masks` the scores say how well the head repeats the labels it was trained on.

In the page `labels.html` people accept and reject labels, and save `accepted.txt`. Here the 10
labels of lowest confidence are rejected instead, so that nobody has to wait.

It needs the extra `all`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageOps

from selfment.backbones import ModuleBackbone
from selfment.images import sample_images

PIECES = 20  # of each photograph


class PatchColours(torch.nn.Module):
    """Mean and deviation of the colours around each patch, as far as 1, 3 and 9 patches."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns (B, 18, h, w) features of (B, 3, 16 h, 16 w) images."""
        mean = torch.nn.functional.avg_pool2d(images, 16)
        square = torch.nn.functional.avg_pool2d(images**2, 16)
        features = []
        for side in (1, 3, 9):
            near, spread = (
                torch.nn.functional.avg_pool2d(values, side, 1, side // 2, count_include_pad=False)
                for values in (mean, square)
            )
            features += [near, (spread - near**2).clamp(min=0).sqrt()]
        return torch.cat(features, 1)


def patch_colours() -> ModuleBackbone:
    """Returns the backbone that `--backbone whole_way:patch_colours` names."""
    return ModuleBackbone(
        PatchColours(), patch_size=16, dim=18, mean=(0.45, 0.45, 0.45), std=(0.25, 0.25, 0.25)
    )


def run(*words: object) -> None:
    """Prints a command and runs it; ends the script if it fails."""
    command = [str(word) for word in words]
    print(f"\n$ {shlex.join(command)}", flush=True)
    done = subprocess.run([sys.executable, "-m", *command], cwd=Path(__file__).parent)
    if done.returncode:
        sys.exit(f"whole_way: `{shlex.join(command)}` ended with exit code {done.returncode}")


def cut_pieces(folder: Path) -> Path:
    """Cuts pieces of half to whole side out of the sample photographs, some of them mirrored."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for entry in sample_images():
        photo = Image.open(entry.path).convert("RGB")
        for number in range(PIECES):
            share = random.uniform(0.5, 1)
            width, height = (round(share * side) for side in photo.size)
            left = int(random.integers(photo.width - width + 1))
            top = int(random.integers(photo.height - height + 1))
            piece = photo.crop((left, top, left + width, top + height))
            if number % 2:
                piece = ImageOps.mirror(piece)
            piece.save(folder / f"{entry.path.stem}-{number:02}.jpg", quality=92)
    return folder


def write_accepted(labels: Path, file: Path, rejected: int) -> None:
    """Writes the names of all images but those of lowest confidence, as the page saves them."""
    lines = (labels / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    records = [record for record in records if record["error"] is None]
    ranked = sorted(records, key=lambda record: record["confidence"])
    kept = sorted(record["image"] for record in ranked[rejected:])
    file.write_text("\n".join(kept) + "\n", encoding="utf-8")
    print(f"\nrejected {len(records) - len(kept)} of {len(records)} labels")


def check_model(model: Path, photo: Path, saliency: Path) -> None:
    """Runs the ONNX file on a photograph, and compares the result with the prediction's file."""
    session = onnxruntime.InferenceSession(model)
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(photo)).convert("RGB"))
    (name,) = (value.name for value in session.get_inputs())
    ours = session.run(None, {name: pixels.transpose(2, 0, 1)[None]})[0][0]
    theirs = np.asarray(Image.open(saliency), dtype=np.float32) / 255
    difference = float(np.abs(ours - theirs).max())
    print(f"\n{model} and {saliency.name} differ by {difference:.4f} at most")
    if difference > 0.01:  # the file has 8 bits
        sys.exit("whole_way: the model and the prediction differ")


def main() -> None:
    """Runs all steps."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--photos", type=Path, metavar="DIR", help="photographs (pieces of sample photographs)")
    add("--masks", type=Path, metavar="DIR", help="their true masks, for the scores (the labels)")
    add("--backbone", metavar="NAME", help="labels and head (classic, and colours of patches)")
    add("--size", type=int, default=480, metavar="S", help="side in pixels (%(default)s)")
    add("--out", type=Path, default=Path("whole_way"), metavar="DIR", help="(%(default)s)")
    rejected = "reject so many labels, those of lowest confidence (%(default)s)"
    add("--reject", type=int, default=10, metavar="N", help=rejected)
    add("--epochs", type=int, metavar="N", help="as often as 3,000 steps take")
    options = parser.parse_args()
    out = options.out.resolve()
    photos = options.photos.resolve() if options.photos else cut_pieces(out / "photos")
    of_labels = ("--backbone", options.backbone or "classic", "--size", options.size)
    of_head = ("--backbone", options.backbone or "whole_way:patch_colours", "--size", options.size)
    labels, head, model = out / "labels", out / "run/head", out / "model.onnx"

    run("selfment", "label", photos, "--out", labels, *of_labels, "--report", out / "labels.html")
    write_accepted(labels, out / "accepted.txt", options.reject)
    masks = ("--labels", labels, "--only", out / "accepted.txt")
    epochs = ("--epochs", options.epochs) if options.epochs else ()
    run("selfment", "train", photos, *masks, "--out", out / "run", *of_head, *epochs)
    saliency = out / "saliency"
    run("selfment", "predict", photos, "--head", head, "--out", saliency, *of_head, "--overlay")
    truth = options.masks.resolve() if options.masks else labels
    scores = ("--protocol", "paper", "--report", out / "scores.html", "--images", photos)
    run("selfment", "eval", "--pred", saliency, "--gt", truth, *scores)
    run("selfment", "export", "--head", head, "--out", model, *of_head)
    photo = sorted(path for path in photos.rglob("*") if path.is_file())[0]
    name = photo.relative_to(photos).with_suffix("")
    check_model(model, photo, saliency / f"{name}_saliency.png")


if __name__ == "__main__":
    main()
