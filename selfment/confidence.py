"""How sure a pseudo-label is: one number, by which images without an object can be told."""

from __future__ import annotations

from torch import Tensor

#: Rejects flat images and noise, and hardly any photograph: measured in docs/design.md.
RECOMMENDED_MIN_CONFIDENCE = 0.25


def confidence(eigenvalue: Tensor, gap: Tensor, separation: Tensor, mask: Tensor) -> Tensor:
    """(B,) float64 in [0, 1]: (1 - lambda) s (1 - a / 4 - g / 4).

    - lambda, the eigenvalue, is what the cut costs: 0 if it cuts nothing, 1 if all patches hang
      together.
    - s is how far apart the class means are, without what chance gives: sqrt(min(1, separation^2) -
      1 / n_f - 1 / n_b), or 0. The means of n_f and n_b orthogonal unit rows are 1 / n_f + 1 / n_b
      apart, squared; so a single patch that is unlike all others is no object.
    - a = lambda / (lambda + gap) is how ambiguous the cut is: 1 where the eigenvalue repeats.
    - g is how much the foreground looks like ground: its share of the patches times its share of
      the four corners of the grid.

    It grows with gap and separation, and falls with the eigenvalue and the corners; 0 where a class
    is empty, NaN where the eigenvalue is. ``eigenvalue``, ``gap`` and ``separation`` (B,) float64,
    ``mask`` (B, h, w) bool, as in :class:`selfment.PseudoLabels`.
    """
    size = mask[0].numel()
    foreground = mask.flatten(1).sum(1).double()
    chance = 1 / foreground + 1 / (size - foreground)
    apart = (separation.clamp(max=1).square() - chance).clamp(min=0).sqrt()
    cost = eigenvalue.clamp(0, 1)
    ambiguous = cost / (cost + gap).clamp(min=1e-30)
    corners = mask[:, :: max(1, mask.shape[1] - 1), :: max(1, mask.shape[2] - 1)]
    ground = foreground / size * corners.flatten(1).double().mean(1)
    return (1 - cost) * apart * (1 - ambiguous / 4 - ground / 4)
