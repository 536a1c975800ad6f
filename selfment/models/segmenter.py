"""Segmenter: from images to saliency maps, by a trained head on a frozen backbone."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..backbones import Backbone, WeightsError, is_factory
from ..backbones.base import digest_of
from ..backbones.custom import OWN, Model
from ..backbones.hub import without_retries
from ..core import options as params
from ..core.arrays import check_data, check_dense
from ..core.torch_state import LOADING, as_documented
from ..images.load import ImageLike, load_image
from ..util.files import write_atomically
from .head import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    HeadInfo,
    PatchHead,
    check_backbone,
    check_fit,
    load_head,
    model_differs,
    save_head,
)
from .image_model import ImageModel
from .module import SaliencyModule
from .transfers import download, upload

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


class Segmenter(ImageModel):
    """Saliency of images: resize, backbone, head, softmax, bilinear to the image's own size.

    The backbone is loaded at the first use, and left out when the segmenter is pickled. Results
    lie on the CPU.
    """

    default_size = 1536

    def __init__(
        self,
        head: PatchHead | str | os.PathLike[str],
        backbone: str | Backbone | Model | None = None,
        size: int | None = None,
        *,
        features: str | None = None,
        weights: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        positions: str | None = None,
        keep_aspect: bool | None = None,
        batch_size: int = 8,
        compile: bool = False,
    ) -> None:
        """Loads the head; the backbone is loaded at its first use.

        Args:
            head: a module, which is copied, or a path, see :func:`selfment.models.head.load_head`.
            backbone: as :class:`selfment.PseudoLabeler` takes it; None for the backbone that the
                head was trained on, which must have a name.
            size: the side in pixels of the square that an image is resized to, a multiple of the
                patch size. None takes the multiple that is nearest to 1536.
            features: see :func:`selfment.backbones.load_backbone`; None for those that the head
                was trained on.
            weights: see there.
            device: where the backbone runs; None takes CUDA if there is one at the first use.
            dtype: see :func:`selfment.backbones.load_backbone`.
            positions: see there; None for those that the head was trained on.
            keep_aspect: make the longer side ``size``, and pad the shorter to whole patches. None
                does so if the head was trained on images in their aspect ratios.
            batch_size: images per pass.
            compile: run backbone and head through ``torch.compile``, if this platform has it. The
                first pass of each shape is slow.

        Raises:
            ValueError: a wrong argument.
            WeightsError: the head cannot be read.
        """
        if isinstance(head, PatchHead):
            self.head, self.info = copy.deepcopy(head).cpu(), HeadInfo()
        else:
            self.head, self.info = load_head(head)
        self.head.eval().requires_grad_(False)
        name = self.info.backbone if backbone is None else backbone
        if name is None:
            raise ValueError(
                "`backbone` must be given: the head does not say which one it was trained on"
            )
        if isinstance(name, str) and name.startswith(OWN):
            raise ValueError(
                f"`backbone` must be given: the head was trained on {name!r}, a backbone of one's "
                "own, which has no name to load it by"
            )
        if isinstance(name, str) and backbone is None and is_factory(name):
            raise ValueError(
                f"`backbone` must be given: the head was trained on {name!r}, and the code that a "
                "head names is not run by itself"
            )
        features = features or self.info.features
        positions = positions or self.info.positions
        super().__init__(name, size, features, weights, device, dtype, batch_size, positions)
        check_backbone(self.info, self.recorded_name)
        self.keep_aspect = self.info.keep_aspect if keep_aspect is None else keep_aspect
        self.compile = compile
        self._is_compared = False
        self._forward: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, revision: str | None = None, **options: Any
    ) -> Segmenter:
        """A segmenter with the head in a file, in a folder or in a Hugging Face hub repository.

        ``name``: a path, or ``owner/repository`` where no such path exists. ``revision``: branch,
        tag or commit of the repository. ``options``: as the constructor takes them. Raises
        :class:`selfment.backbones.WeightsError` for a head that cannot be had or read, and
        ``ValueError``.
        """
        text = os.fspath(name)
        hub = _HUB_ID.fullmatch(text) and not text.endswith(_CHECKPOINTS)
        if hub and not os.path.exists(text):
            text = _download(text, revision)
        return cls(text, **options)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the head into a folder that can be uploaded to a model hub as it is.

        ``model.safetensors``, ``config.json`` with backbone, features and positions, and a
        ``README.md`` where there is none. :meth:`from_pretrained` reads it.
        """
        info = HeadInfo(
            self.recorded_name,
            self.features,
            self.info.size,
            self.info.settings,
            self.positions,
            self.info.keep_aspect,
        )
        save_head(folder, self.head, info)
        card = Path(folder) / "README.md"
        if not card.exists():
            own = self.recorded_name.startswith(OWN) or is_factory(self.recorded_name)
            text = _CARD.format(
                backbone=info.backbone,
                features=info.features,
                dim=self.head.dim,
                argument=", backbone=..." if own else "",
            )
            write_atomically(card, lambda file: file.write(text.encode()))

    def to_module(self, *, resize: bool = True) -> SaliencyModule:
        """A module from (B, 3, H, W) uint8 RGB photographs to (B, H, W) float32 saliency.

        It has its own copy of backbone and head, on the segmenter's device. The saliency is that of
        a call. ``resize``: resize photographs to the square of side ``size``; False takes them as
        they are, with sides that are multiples of the patch size, which gives what ``keep_aspect``
        gives with the longer side as ``size``. :func:`selfment.models.export.export_segmenter`
        writes the module to a file. Raises as :attr:`backbone` does, and ``ValueError`` for a
        backbone that is not made for it.
        """
        rule = (
            "False, in the head's training too, for a module that resizes photographs to a square; "
            "resize=False, `--size dynamic`, takes them as they are"
        )
        params.require("keep_aspect", self.keep_aspect, rule, not (self.keep_aspect and resize))
        module = SaliencyModule(self.backbone, self.head, self.size if resize else None)
        return module.eval().to(self.torch_device)

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded at the first use.

        Raises ``ValueError``, also where the head does not fit it, or
        :class:`selfment.backbones.WeightsError`.
        """
        backbone = super().backbone
        check_fit(self.head, self.info, self.backbone_name, backbone.dim)
        if not self._is_compared:
            self._is_compared = True
            if model_differs(self.info, super().settings):
                warnings.warn(
                    f"the head was trained on {self.info.features} of {self.info.backbone!r}, and "
                    f"is used with {self.features} of {self.backbone_name!r}: if the model or its "
                    "weights are others, the saliency means nothing",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return backbone

    @property
    def settings(self) -> dict[str, Any]:
        """All that the saliency depends on besides the image, ready for JSON."""
        return {
            **super().settings,
            "head": digest_of(self.head),
            "keep_aspect": self.keep_aspect,
        }

    def _more(self) -> str:
        return f"head={type(self.head).__name__}({self.head.dim}), "

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Any:
        """Saliency of one image (PIL, path, uint8 array), or a list of them for a list.

        Each is an (H, W) float32 tensor in [0, 1] at the upright image's own size. Raises
        :class:`selfment.images.ImageError` and ``ValueError``.
        """
        if not isinstance(images, Sequence) or isinstance(images, str | bytes):
            return self._segment([images])[0]
        found: list[Tensor] = []
        for start in range(0, len(images), self.batch_size):
            found += self._segment(images[start : start + self.batch_size])
        return found

    def preprocess(self, image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """(3, H, W) float32 of an RGB image, and the (height, width) of it that are image."""
        if self.keep_aspect:
            return self.backbone.preprocess_whole(image, self.size)
        return self.backbone.preprocess(image, self.size), (self.size, self.size)

    def load(self) -> None:
        """Loads the backbone and builds what :meth:`saliency_batch` runs; once, at its first use.

        Raises as :attr:`backbone` does, and ``ValueError`` where ``compile`` is set and
        torch.compile does not work here, without a C++ compiler, say.
        """
        if self._forward is None:
            with LOADING.held():
                if self._forward is None:  # no other thread has built it meanwhile
                    self._forward = self._built()

    @torch.no_grad()
    def saliency_batch(self, batch: Tensor) -> Tensor:
        """(B, h, w) float32 in [0, 1] on the patch grid, of (B, 3, H, W) preprocessed images.

        Raises ``ValueError`` for features that are not finite and ``TypeError`` for a batch that is
        no dense tensor.
        """
        return self.start_batch(batch)()

    def start_batch(self, batch: Tensor) -> Callable[[], Tensor]:
        """Begins :meth:`saliency_batch`; returns the function that waits for the saliency.

        On a CUDA device everything is queued, so that another batch can be begun meanwhile.
        """
        check_dense(batch, "batch")
        check_data(batch, "batch")
        self.load()
        assert self._forward is not None
        with as_documented(self.torch_device):
            copied = download([self._forward(upload(batch, self.torch_device))])

        def wait() -> Tensor:
            (saliency,) = copied()
            if not saliency.isfinite().all():
                raise ValueError(
                    "`features` must be finite, and so must their norms: the saliency is not"
                )
            return saliency

        return wait

    def to_image(self, saliency: Tensor, content: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """(H, W) float32 in [0, 1] of an (h, w) saliency on the patch grid; bilinear.

        ``content``: as :meth:`preprocess` gave it; ``size``: (W, H) in pixels.
        """
        width, height = size
        grid = saliency[None, None].float()
        patch = self.backbone.patch_size
        padded = saliency.shape[0] * patch, saliency.shape[1] * patch
        if content == padded:
            resized = functional.interpolate(
                grid, (height, width), mode="bilinear", align_corners=False
            )
        else:
            # One interpolation at the pixels' centres in the padded image, in units of its sides.
            y = _centres(height) * (content[0] / padded[0] / height) - 1
            x = _centres(width) * (content[1] / padded[1] / width) - 1
            places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
            resized = functional.grid_sample(
                grid, places, mode="bilinear", padding_mode="border", align_corners=False
            )
        clamped: Tensor = resized[0, 0].clamp(0, 1)
        return clamped

    def _segment(self, images: Sequence[ImageLike]) -> list[Tensor]:
        pictures = [load_image(image)[0] for image in images]
        prepared = [self.preprocess(picture) for picture in pictures]
        found: dict[int, Tensor] = {}
        for shape in {pixels.shape for pixels, _ in prepared}:
            chosen = [i for i, (pixels, _) in enumerate(prepared) if pixels.shape == shape]
            grids = self.saliency_batch(torch.stack([prepared[i][0] for i in chosen]))
            for i, grid in zip(chosen, grids, strict=True):
                found[i] = self.to_image(grid, prepared[i][1], pictures[i].size)
        return [found[i] for i in range(len(pictures))]

    def _built(self) -> Callable[[Tensor], Tensor]:
        """Backbone and head as one function of a batch."""
        backbone = self.backbone
        device = self.torch_device
        with torch.inference_mode(False):
            head = copy.deepcopy(self.head).to(device)

        def forward(batch: Tensor) -> Tensor:
            grid = backbone.grid(*batch.shape[-2:])
            return head.saliency(backbone(batch)).reshape(-1, *grid).float()

        if self.compile and torch._dynamo.is_dynamo_supported():
            _check_compiler(device)
            compiled: Callable[[Tensor], Tensor] = torch.compile(forward)
            return compiled
        return forward

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_forward": None}


def _centres(size: int) -> Tensor:
    """(size,) float32: twice the pixels' centres, whatever torch's default dtype and device are."""
    return 2 * torch.arange(size, dtype=torch.float32, device="cpu") + 1


def _check_compiler(device: torch.device) -> None:
    """Raises ``ValueError`` where torch.compile does not work, by compiling a few operations."""
    try:
        with as_documented(device):
            torch.compile(lambda x: (x.sin() + 1).sum())(
                torch.ones(64, dtype=torch.float32, device=device)
            )
    except Exception as error:  # torch's own, of each of its compilers
        raise ValueError(
            "`compile` must be left out where torch.compile does not work: it needs a C++ "
            "compiler, and Triton on a GPU, and got "
            f"{innermost(error)}"
        ) from error


def innermost(error: BaseException) -> str:
    """Returns the first cause of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f" ({lines[0][:160]})" if lines else "")


def _download(name: str, revision: str | None) -> str:
    """The folder of the hub's cache that holds a repository's head."""
    from huggingface_hub import hf_hub_download

    try:
        with without_retries():
            hf_hub_download(name, CONFIG_NAME, revision=revision)
            file = hf_hub_download(name, WEIGHTS_NAME, revision=revision)
    except Exception as error:  # every release of the hub library raises errors of its own
        at = f" at revision {revision!r}" if revision else ""
        raise WeightsError(
            f"`head` must be a file, a folder or a repository of the Hugging Face hub with "
            f"{CONFIG_NAME} and {WEIGHTS_NAME}: {name!r}{at} is no path here and cannot be "
            f"downloaded ({type(error).__name__})"
        ) from error
    return os.path.dirname(file)


_CARD = """---
library_name: selfment
pipeline_tag: image-segmentation
tags:
- selfment
- salient-object-detection
- unsupervised-segmentation
---

# Selfment segmentation head

Foreground saliency on the {features} of the frozen backbone `{backbone}` (d = {dim}), trained
without labels.

```python
from selfment import Segmenter

segmenter = Segmenter.from_pretrained("owner/repository"{argument})
saliency = segmenter("image.jpg")  # (H, W), float32 in [0, 1]
```
"""
