"""Times a training step of the head, and related work.

- A step (loss forward and backward, optimiser) against the official code, which labels the image
  again in each step (scipy's `eigh`) and loops over rows for the contrastive loss. Losses and
  gradients are compared before anything is timed.
- The memory of the contrastive loss at N = 25,600.
- The head's share of inference, compared with a ViT-S with random weights.
- A run of 1000 images and 3 epochs from cached features, projected from the measured steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from inputs import machine, photo_features, photographs
from memory import peak_mib
from ncut_speed import Problem, official
from torch import Tensor
from torch.nn import functional

import selfment
from selfment.training.losses import (
    CONTRASTIVE_WEIGHT,
    TEMPERATURE,
    contrastive,
    head_loss,
    soft_dice,
)


def contrastive_by_rows(embedding: Tensor, labels: Tensor) -> Tensor:
    """Computes the contrastive loss row by row."""
    rows = functional.normalize(embedding, dim=1)
    log_p = functional.log_softmax(rows @ rows.T / TEMPERATURE, dim=1)
    total = embedding.new_zeros(())
    for i in range(len(labels)):
        positive = labels == labels[i]
        positive[i] = False
        total = total - log_p[i, positive].mean()
    return total / len(labels)


def official_loss(head: selfment.PatchHead, features: Tensor, labels: Tensor) -> Tensor:
    """Computes the loss as the official code does."""
    logits, embedding = head(features)
    target = labels.float()
    bce = functional.binary_cross_entropy_with_logits(logits[:, 1], target)
    dice = soft_dice(logits.softmax(1)[:, 1], target)
    return bce + dice + CONTRASTIVE_WEIGHT * contrastive_by_rows(embedding, labels)


def timed(name: str, run: Callable[[], object], rounds: int) -> float:
    """Prints and returns the median of ``rounds`` runs in seconds, after a warm-up run."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    low, high = min(times), max(times)
    print(
        f"  {name:44}{1000 * median:9.1f} ms   {1000 * low:.1f} to {1000 * high:.1f}, {rounds} runs"
    )
    return median


def steps(photo: Path, side: int, dim: int, rounds: int) -> None:
    """Times a training step of selfment and of the official code."""
    problem = Problem.of(photo_features(photo, side, dim), side)
    features = problem.features
    labels = selfment.pseudo_label(features, (side, side)).mask.flatten()
    assert torch.equal(official(problem), labels)
    head = selfment.PatchHead(dim)
    adam = torch.optim.Adam(
        head.parameters(), lr=0.0, weight_decay=1e-5
    )  # the head does not change
    gradients = []
    losses = []
    logits, embedding = head(features)
    total = head_loss(logits, embedding, labels).total
    for loss in (total, official_loss(head, features, labels)):
        adam.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in head.parameters()]))  # type: ignore[union-attr]
    error = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    assert abs(losses[0] - losses[1]) < 1e-5
    assert error < 1e-3
    print(f"\nA step at N = {side * side}, d = {dim}")
    print(
        f"  losses differ by {abs(losses[0] - losses[1]):.0e}, "
        f"gradients by {error:.0e} of their norm"
    )

    def step(loss: Callable[[], Tensor]) -> None:
        adam.zero_grad()
        loss().backward()
        adam.step()

    def own_loss() -> Tensor:
        logits, embedding = head(features)
        return head_loss(logits, embedding, labels).total

    ours = timed("selfment", lambda: step(own_loss), 5 * rounds)
    loop = timed(
        "the official loss, labels given",
        lambda: step(lambda: official_loss(head, features, labels)),
        rounds,
    )
    whole = timed(
        "the official way, label included",
        lambda: step(lambda: official_loss(head, features, official(problem))),
        rounds,
    )
    print(f"  {loop / ours:.0f}x with the labels given, {whole / ours:.0f}x with the label")
    embedding = head(features)[1].detach().requires_grad_()
    timed(
        "the contrastive loss alone", lambda: contrastive(embedding, labels).backward(), 5 * rounds
    )
    print(f"  1000 images, 3 epochs from cached features: {3000 * ours / 60:.1f} minutes")


def memory(patches: int) -> None:
    """Measures the peak memory of the contrastive loss, forward and backward."""
    embedding = torch.randn(patches, 128, requires_grad=True)
    labels = torch.rand(patches) < 0.3
    start = time.perf_counter()
    _, peak = peak_mib(lambda: contrastive(embedding, labels).backward())
    seconds = time.perf_counter() - start
    print(
        f"\nThe contrastive loss at N = {patches}: {peak or float('nan'):.0f} MiB, {seconds:.1f} s"
    )


def inference(size: int, rounds: int) -> None:
    """Measures the head's share of a forward pass of a ViT-S."""
    model: Any = timm.create_model(
        "vit_small_patch16_224", pretrained=False, num_classes=0, dynamic_img_size=True
    ).eval()
    head = selfment.PatchHead(model.embed_dim)
    pixels = torch.rand(1, 3, size, size)
    print(f"\nInference at {size} x {size}")
    with torch.no_grad():
        features = model.forward_features(pixels)[0, 1:]
        backbone = timed("ViT-S, random weights", lambda: model.forward_features(pixels), rounds)
        own = timed("head", lambda: head.saliency(features), 5 * rounds)
    print(f"  the head takes {own / backbone:.2%} of the backbone's time")


def main() -> None:
    """Runs and prints everything."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("images", nargs="*", help="files, folders, globs (default: samples)")
    parser.add_argument("--side", type=int, default=48, help="patches per side")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for name, value in machine().items():
        print(f"{name}: {value}")
    steps(photographs(arguments.images)[0], arguments.side, arguments.dim, arguments.rounds)
    memory(25_600)
    inference(768, arguments.rounds)


if __name__ == "__main__":
    main()
