"""The base classes of methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backbones import Attended, Backbone
from ..core.arrays import Grid, as_features
from ..core.ipo import run_ipo
from ..core.label import PseudoLabels
from ..core.objects import Objects
from ..core.options import NO_IPO, CutOptions, IpoOptions, require

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Votes:
    """The patch features of B images from one backbone, and from others whose clusters vote."""

    features: Tensor  #: (B, N, d), of the backbone whose grid the labels have
    others: list[tuple[Tensor, Grid]]  #: (B, N', d') features and (h', w') of each other backbone

    @property
    def is_cuda(self) -> bool:
        """True if the features lie on a CUDA device."""
        return self.features.is_cuda

    def cpu(self) -> Votes:
        """Returns the same on the CPU."""
        return Votes(self.features.cpu(), [(rows.cpu(), grid) for rows, grid in self.others])


Inputs = Tensor | Attended | Votes  #: what a method labels


def check_types(method: Method) -> None:
    """Raises ``ValueError`` unless ``cut`` and ``ipo`` are objects with such options."""
    for name, kind in (("cut", CutOptions), ("ipo", IpoOptions)):
        value = getattr(method, name, None)
        wanted = any(field.name == name for field in fields(method))
        require(name, value, f"of the class {kind.__name__}", not wanted or isinstance(value, kind))


@dataclass(frozen=True)
class Method(ABC):
    """A way to label images from their patch features; its options are its fields.

    A method is a frozen dataclass. ``METHODS[name]()`` has the defaults, and fields with a rule are
    checked when the object is made.
    """

    name: ClassVar[str]  #: the string that stands for the method at its defaults
    #: "CLS token" or its "attention", if the method needs it
    cls_token: ClassVar[str | None] = None
    has_vector: ClassVar[bool] = True  #: False if the labels come without a Fiedler vector
    default_backbone: ClassVar[str] = "classic"  #: the backbone that suits without weights

    @classmethod
    def known(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns those of the options that the method has."""
        names = {field.name for field in fields(cls)}
        return {name: value for name, value in options.items() if name in names}

    @property
    def needs(self) -> str | None:
        """The first words of an error if patch features alone do not suffice; None if they do."""
        need = self.cls_token
        return None if need is None else f"`method` {self.name!r} needs a ViT's {need}"

    @property
    def settings(self) -> dict[str, Any]:
        """All options that the labels depend on, ready for JSON."""
        return {"name": self.name, **asdict(self)}

    def fitted(self, backbone: Backbone | type[Backbone], name: str) -> Method:
        """Returns the method with the backbone's own choice where an option leaves it open.

        Raises ``ValueError`` if the backbone ``name`` lacks what the method needs.
        """
        if self.cls_token is not None and not backbone.attends:
            raise ValueError(f"{self.needs}: got the backbone {name!r}")
        return self

    @abstractmethod
    def label(self, features: Inputs, grid: Grid) -> PseudoLabels | list[Objects]:
        """Labels (B, N, d) features of a ``grid`` (h, w), on the device where they are.

        In labels without a Fiedler vector it, ``eigenvalue``, ``gap``, ``residual`` and ``tau`` are
        NaN and ``lanczos_iters`` is 0; without a seed ``seed`` is -1. ``confidence`` is NaN for a
        mask that does not come from one cut and IPO. A single patch is foreground. Raises
        ``ValueError`` for features that are not finite, and for patch features alone where
        :attr:`needs` asks for more.
        """

    def rows(self, features: Inputs) -> Tensor:
        """Returns the patch features (B, N, d); raises ``ValueError`` if more is needed."""
        if isinstance(features, Attended | Votes):
            return features.features
        if self.needs is not None:
            raise ValueError(f"{self.needs}: got patch features alone")
        return features


@dataclass(frozen=True)
class MaskMethod(Method):
    """A method that splits the patches of one image at a time, without a cut; IPO may follow."""

    has_vector: ClassVar[bool] = False

    @property
    def ipo_after(self) -> IpoOptions:
        """When the IPO ends that follows the split."""
        return NO_IPO

    @abstractmethod
    def mask(self, features: Inputs, image: int, grid: Grid) -> Mask:
        """Returns the foreground (N,) of one image, N >= 2."""

    def label(self, features: Inputs, grid: Grid) -> PseudoLabels:
        """See :meth:`Method.label`."""
        rows = self.rows(features)
        as_features(rows, grid, needs_grid=True)
        batch, n, _ = rows.shape
        alone = np.ones(1, dtype=bool)
        masks = [alone if n == 1 else self.mask(features, image, grid) for image in range(batch)]
        start = torch.from_numpy(np.stack(masks)).to(rows.device)
        label, steps, separation = run_ipo(rows.contiguous(), start, self.ipo_after)
        nan = torch.full_like(separation, torch.nan)
        return PseudoLabels(
            mask=label.unflatten(1, grid),
            ncut_mask=start.unflatten(1, grid),
            fiedler=nan.float()[:, None, None].expand(-1, *grid),
            eigenvalue=nan,
            gap=nan,
            residual=nan,
            seed=torch.full_like(steps, -1),
            lanczos_iters=torch.zeros_like(steps),
            ipo_iters=steps,
            separation=separation,
            confidence=nan,
            rejected=torch.zeros_like(steps, dtype=torch.bool),
            tau=nan,
        )


def with_mask(labels: PseudoLabels, features: Tensor, mask: Tensor) -> PseudoLabels:
    """Returns ``labels`` of (B, N, d) features with a mask (B, h, w) that is not their cut's."""
    separation = run_ipo(features.contiguous(), mask.flatten(1), NO_IPO)[2]
    unknown = torch.full_like(separation, torch.nan)
    return replace(labels, mask=mask, separation=separation, confidence=unknown)
