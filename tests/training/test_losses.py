"""The losses equal their definitions, gradients included, in bounded memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from helpers.cases import generator
from selfment.training import losses
from selfment.training.losses import contrastive, head_loss, soft_dice


def literal_contrastive(embedding: Tensor, labels: Tensor, temperature: float = 0.05) -> Tensor:
    """Row by row, as it is defined."""
    if min(labels.sum(), (~labels).sum()) < 2:
        return 0 * embedding.sum()
    rows = functional.normalize(embedding, dim=-1)
    log_p = functional.log_softmax(rows @ rows.T / temperature, dim=1)
    terms = []
    for i in range(len(labels)):
        positive = (labels == labels[i]) & (torch.arange(len(labels)) != i)
        terms.append(-log_p[i, positive].mean())
    return torch.stack(terms).mean()


def sample(n: int, seed: int = 0, share: float = 0.3) -> tuple[Tensor, Tensor]:
    embedding = torch.randn(n, 128, generator=generator(seed), dtype=torch.float64)
    labels = torch.rand(n, generator=generator(seed + 1)) < share
    # Classes that are apart, to some degree.
    return embedding + labels[:, None] * 0.7, labels


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 64, 333])
@pytest.mark.parametrize("block", [1, 7 * 333 * 8, 32 << 20])
def test_contrastive_equals_its_definition(n: int, block: int, monkeypatch) -> None:
    monkeypatch.setattr(losses, "_BLOCK_BYTES", block)
    embedding, labels = sample(n, seed=n)
    labels[:2], labels[-2:] = True, False
    leaves = [embedding.clone().requires_grad_() for _ in range(2)]
    ours, expected = contrastive(leaves[0], labels), literal_contrastive(leaves[1], labels)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for loss in (ours, expected):
        (3 * loss).backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-9, atol=1e-12)
    assert leaves[1].grad.abs().max() > 1e-4


@pytest.mark.slow
def test_contrastive_in_float32() -> None:
    embedding, labels = sample(500)
    leaf = embedding.float().requires_grad_()
    exact = embedding.clone().requires_grad_()
    contrastive(leaf, labels).backward()
    literal_contrastive(exact, labels).backward()
    scale = exact.grad.abs().max()
    assert (leaf.grad.double() - exact.grad).abs().max() < 1e-5 * scale
    assert contrastive(leaf, labels).item() == pytest.approx(
        literal_contrastive(exact, labels).item(), rel=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("foreground", [0, 1, 19, 20])
def test_contrastive_is_zero_where_a_side_has_one_patch_or_none(foreground: int) -> None:
    embedding = torch.randn(20, 128, generator=generator(0)).requires_grad_()
    loss = contrastive(embedding, torch.arange(20) < foreground)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(embedding.grad, torch.zeros(20, 128))


def test_equal_and_opposite_rows_do_not_overflow() -> None:
    embedding = torch.ones(40, 128)
    embedding[::2] *= -1e6
    labels = torch.arange(40) % 2 == 0
    assert contrastive(embedding, labels).item() == pytest.approx(math.log(20), rel=1e-5)


def test_dice_and_the_total() -> None:
    logits = torch.randn(30, 2, generator=generator(1), dtype=torch.float64)
    embedding, labels = sample(30)
    target = labels.double()
    p = logits.exp()[:, 1] / logits.exp().sum(1)
    dice = 1 - (2 * (p * target).sum() + 1e-6) / (p.sum() + target.sum() + 1e-6)
    assert soft_dice(p, target).item() == pytest.approx(dice.item(), rel=1e-12)
    chance = torch.sigmoid(logits[:, 1])
    bce = -(target * chance.log() + (1 - target) * (1 - chance).log()).mean()
    loss = head_loss(logits, embedding, labels)
    assert loss.bce.item() == pytest.approx(bce.item(), rel=1e-12)
    assert loss.dice.item() == pytest.approx(dice.item(), rel=1e-12)
    total = bce + dice + 0.1 * literal_contrastive(embedding, labels)
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-12)


def test_shapes_are_checked() -> None:
    with pytest.raises(
        ValueError, match=r"must be \(N, 2\), .*got \(9, 2\), \(9, 128\) and \(8,\)"
    ):
        head_loss(torch.zeros(9, 2), torch.zeros(9, 128), torch.zeros(8, dtype=torch.bool))
