"""The training loop: a head on features and labels, without files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from ..core.torch_state import as_documented
from ..models.head import PatchHead
from ..util import distributed as _distributed
from .losses import HeadLoss, head_loss
from .samples import ahead

STEPS = 3000  # images that a head is trained on by default, as in the paper
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-5
SEED = 111
_AHEAD = 4  # samples that are read ahead of the training step
LOSSES = ("total", "bce", "dice", "contrastive")


class Samples(Protocol):
    """The images that a head is trained on."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """(N, d) features and (N,) labels of an image; called from several threads.

        Labels are bool, or the share of each patch that is foreground, in [0, 1].
        """


@dataclass(frozen=True)
class Step:
    """One optimisation step: the losses are means over the images of all processes."""

    epoch: int  #: from 1
    step: int  #: from 1, over all epochs
    index: int  #: of this process's image
    total: float
    bce: float
    dice: float
    contrastive: float


def fit(
    head: PatchHead,
    samples: Samples,
    *,
    epochs: int,
    lr: float = LEARNING_RATE,
    weight_decay: float = WEIGHT_DECAY,
    seed: int = SEED,
    finished: int = 0,
    optimizer_state: dict[str, Any] | None = None,
    on_step: Callable[[Step], object] = lambda step: None,
    on_epoch: Callable[[int, dict[str, Any]], object] = lambda epoch, state: None,
) -> PatchHead:
    """Trains ``head`` in place, on its device: Adam, one image for each step and process.

    The order of the images in an epoch depends on ``seed`` and the number of the epoch alone, so
    that a run that goes on after ``finished`` epochs ends as one that never stopped. Under
    ``torch.distributed`` each process trains on its share of every epoch. The caller's autocast,
    default device and modes without gradients change nothing.

    Args:
        head: The head to train.
        samples: Features (N, d) and labels (N,) of each image.
        epochs: How often each image is trained on.
        lr: Learning rate of Adam.
        weight_decay: Of Adam.
        seed: Of the order of the images.
        finished: Epochs that an earlier run has finished.
        optimizer_state: The optimiser's state after these epochs.
        on_step: Called after each step.
        on_epoch: Called after each epoch with its number, from 1, and the optimiser's state.

    Returns:
        The head, in evaluation mode.

    Raises:
        ValueError: Where the loss is not finite, or for a head that was made in inference mode.
    """
    device = next(head.parameters()).device
    if any(parameter.is_inference() for parameter in head.parameters()):
        raise ValueError(
            "`head` must not be made in torch.inference_mode(): its parameters then can have no "
            "gradients"
        )
    with torch.inference_mode(False), torch.enable_grad(), as_documented(device):
        model: nn.Module = head
        rank, world = 0, 1
        if torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
            model = nn.parallel.DistributedDataParallel(head)
        optimizer = torch.optim.Adam(head.parameters(), lr=lr, weight_decay=weight_decay)
        if optimizer_state is not None:
            optimizer.load_state_dict(optimizer_state)
        indices: Any = range(len(samples))
        sampler: DistributedSampler[int]
        sampler = DistributedSampler(indices, world, rank, shuffle=True, seed=seed)
        step = finished * len(sampler)
        head.train()
        for epoch in range(finished + 1, epochs + 1):
            sampler.set_epoch(epoch)
            for index, features, labels in _prefetched(samples, sampler, device.type == "cuda"):
                logits, embedding = model(features.to(device, non_blocking=True))
                loss = head_loss(logits, embedding, labels.to(device, non_blocking=True))
                optimizer.zero_grad(set_to_none=True)
                loss.total.backward()
                optimizer.step()
                step += 1
                values = _values(loss)
                if not math.isfinite(values["total"]):  # in every process alike
                    raise ValueError(
                        f"the loss must be finite: got {values['total']} in step {step}, of epoch "
                        f"{epoch}; is the learning rate of {lr} too high, or a feature not finite?"
                    )
                on_step(Step(epoch, step, index, **values))
            on_epoch(epoch, optimizer.state_dict())
    return head.eval()


def _prefetched(
    samples: Samples, order: Iterable[int], pin: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    def read(index: int) -> tuple[Tensor, ...]:
        return tuple(part.pin_memory() if pin else part for part in samples[index])

    with ThreadPoolExecutor(2) as pool:
        for index, future in ahead(pool, read, order, _AHEAD):
            features, labels = future.result()
            yield index, features, labels


def _values(loss: HeadLoss) -> dict[str, float]:
    values = torch.stack([getattr(loss, name).detach().float() for name in LOSSES])
    return dict(zip(LOSSES, _distributed.mean(values).tolist(), strict=True))
