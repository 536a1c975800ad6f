"""The losses of the segmentation head (paper, section 3.3): BCE, soft Dice, contrastive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..core.arrays import check_data, check_dense
from ..core.torch_state import without_autocast

TEMPERATURE = 0.05
CONTRASTIVE_WEIGHT = 0.1

_BLOCK_BYTES = 32 << 20  # of similarities in memory at a time


@dataclass(frozen=True)
class HeadLoss:
    """Scalars of one image; ``total`` = ``bce`` + ``dice`` + 0.1 ``contrastive``."""

    total: Tensor
    bce: Tensor
    dice: Tensor
    contrastive: Tensor


def head_loss(logits: Tensor, embedding: Tensor, labels: Tensor) -> HeadLoss:
    """The loss of one image from the output of :class:`selfment.PatchHead`.

    ``logits`` (N, 2), ``embedding`` (N, c), ``labels`` (N,) bool, or floats in [0, 1]: the share
    of each patch that is foreground. BCE and Dice take the shares as they are. The contrastive loss
    needs classes: patches of more than one half are foreground. The loss is computed in the dtypes
    of the first two, also under autocast. Raises ``ValueError`` for other shapes and ``TypeError``
    for arguments that are not dense tensors.
    """
    _check(logits=logits, embedding=embedding, labels=labels)
    patches = len(labels)
    if labels.ndim != 1 or logits.shape != (patches, 2) or embedding.shape[:-1] != (patches,):
        raise ValueError(
            "`logits`, `embedding` and `labels` must be (N, 2), (N, c) and (N,): "
            f"got {tuple(logits.shape)}, {tuple(embedding.shape)} and {tuple(labels.shape)}"
        )
    with without_autocast(logits.device):
        target = labels.to(logits.dtype)
        bce = functional.binary_cross_entropy_with_logits(logits[:, 1], target)
        dice = soft_dice(logits.softmax(-1)[:, 1], target)
    pull = contrastive(embedding, labels)
    return HeadLoss(bce + dice + CONTRASTIVE_WEIGHT * pull, bce, dice, pull)


def soft_dice(probability: Tensor, target: Tensor) -> Tensor:
    """One minus the Dice overlap of (N,) probabilities with (N,) targets in [0, 1]."""
    _check(probability=probability, target=target)
    overlap = 2 * (probability * target).sum() + 1e-6
    return 1 - overlap / (probability.sum() + target.sum() + 1e-6)


def contrastive(embedding: Tensor, labels: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Mean over patches i of the mean of -log p_ij over the other patches j of i's class.

    p_i is the softmax over all patches, i included, of the cosine similarities of row i divided by
    ``temperature``; 0 where a class has fewer than two patches. ``embedding`` (N, c), ``labels``
    (N,) bool, or floats in [0, 1] that stand for foreground above 1/2. Memory: O(N c) and a block
    of 32 MiB.

    The mean over positives is a product with the class sum S: <e_i, S - e_i> / ((n - 1) T). Only
    the logarithms of the softmax's denominators need all pairs.
    """
    _check(embedding=embedding, labels=labels)
    foreground = (labels > 0.5).to(embedding.dtype)
    sizes = torch.stack([len(labels) - foreground.sum(), foreground.sum()])
    members = torch.stack([1 - foreground, foreground], 1)  # (N, 2)
    with without_autocast(embedding.device):
        rows = functional.normalize(embedding, dim=-1)
        sums = members.T @ rows
        own_sum, own_size = members @ sums, members @ sizes
        similarity = (rows * (own_sum - rows)).sum(-1) / ((own_size - 1).clamp(min=1) * temperature)
        lse: Tensor = _RowLogSumExp.apply(rows, temperature)
    loss = (lse - similarity).mean()
    # torch.where needs no copy of the sizes to the host, which would wait for the device.
    return torch.where(sizes.min() < 2, torch.zeros_like(loss), loss)


class _RowLogSumExp(torch.autograd.Function):
    """(N,) logsumexp_j(<e_i, e_j> / T) of (N, c) unit rows, by blocks of rows.

    With K_ij = exp((<e_i, e_j> - 1) / T), which cannot overflow, and row sums s, the result is
    log(s_i) + 1 / T. As K is symmetric, the gradient for g is
    sum_j K_ij (g_i / s_i + g_j / s_j) e_j / T: one more product with K, by the same blocks.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, temperature: float) -> Tensor:
        block = max(1, _BLOCK_BYTES // (len(rows) * rows.element_size()))
        ctx.block, ctx.temperature, ctx.kernel = block, temperature, None
        sums = []
        # All blocks share one buffer: one buffer each would take many times the memory.
        buffer = rows.new_empty((min(block, len(rows)), len(rows)))
        for part in rows.split(block):
            kernel = _kernel(part, rows, temperature, buffer)
            sums.append(kernel.sum(1))
            if len(part) == len(rows):
                ctx.kernel = kernel
        total = torch.cat(sums)
        ctx.save_for_backward(rows, total)
        return total.log() + 1 / temperature

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows, total = ctx.saved_tensors
        share = (grad / total)[:, None]
        both = torch.cat([rows, share * rows], 1)
        parts = []
        if ctx.kernel is None:
            buffer = rows.new_empty((ctx.block, len(rows)))
        # The caller may run the backward pass under autocast, too.
        with without_autocast(rows.device):
            for part, own in zip(rows.split(ctx.block), share.split(ctx.block), strict=True):
                kernel = ctx.kernel
                if kernel is None:
                    kernel = _kernel(part, rows, ctx.temperature, buffer)
                plain, shared = (kernel @ both).chunk(2, 1)
                parts.append(torch.addcmul(shared, own, plain))
        return torch.cat(parts).div_(ctx.temperature), None


def _check(**tensors: Tensor) -> None:
    """Raises ``TypeError`` for what is no dense tensor, ``ValueError`` for tensors without data."""
    for name, tensor in tensors.items():
        check_dense(tensor, name)
        check_data(tensor, name)


def _kernel(part: Tensor, rows: Tensor, temperature: float, buffer: Tensor) -> Tensor:
    """exp((<part, rows> - 1) / T), written to the first rows of the buffer."""
    product = torch.mm(part, rows.T, out=buffer[: len(part)])
    return product.sub_(1).div_(temperature).exp_()
