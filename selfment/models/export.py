"""A segmenter as a file that runs without selfment: ONNX, or an archive of torch.export."""

from __future__ import annotations

import copy
import io
import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core import options as params
from ..core.torch_state import SETTINGS
from ..util.extras import load_extra
from ..util.files import output_file, write_atomically
from .module import SaliencyModule
from .segmenter import Segmenter, innermost

SUFFIXES = (".onnx", ".pt2")
TOLERANCE = 1e-4  #: the largest difference between a file's saliency and the segmenter's
INPUT, OUTPUT = "photo_uint8", "saliency"  #: the names in an ONNX file

_MOST_BYTES = 2**31 - 2**24  # of weights in an ONNX file, which has 2 GiB at most
_OPSET = 20  # from 18 on, resizing may be antialiased
_TORCH = (2, 7)  # torch 2.6 cannot convert resizing to a size that varies

Run = Callable[[Tensor], Tensor]
Pixels = npt.NDArray[np.uint8]


def export_segmenter(
    segmenter: Segmenter, path: str | os.PathLike[str], *, resize: bool = True
) -> float:
    """Writes a segmenter as one file that runs without selfment, if the file computes the same.

    The file maps (B, 3, H, W) uint8 RGB photographs to (B, H, W) float32 saliency, as the module of
    :meth:`selfment.Segmenter.to_module` does. What is written has been loaded and compared with the
    segmenter on two images; it is written atomically, and replaces an older file.

    Args:
        segmenter: on the CPU, in float32.
        path: ``.onnx`` for ONNX, or ``.pt2`` for :func:`torch.export.load`.
        resize: see :meth:`selfment.Segmenter.to_module`.

    Returns:
        The largest difference between the file's saliency and the segmenter's, at most 1e-4.

    Raises:
        ValueError: a wrong argument, a backbone that cannot be exported, or a larger difference.
        ImportError: a library that ONNX needs is missing.
    """
    target = output_file("out", path, SUFFIXES)
    kind = target.suffix.lower()
    if kind == ".onnx":
        old = tuple(map(int, torch.__version__.split(".")[:2])) < _TORCH
        params.require("torch", torch.__version__, "2.7 or later for ONNX, not for .pt2", not old)
        for name, library in ("onnxscript", "onnxscript"), ("onnxruntime", "ONNX Runtime"):
            load_extra(name, library, "onnx", "an ONNX file")
    device = segmenter.torch_device
    params.require("device", str(device), "the CPU for an export", device.type == "cpu")
    dtype = getattr(segmenter.backbone, "dtype", None)
    params.require("dtype", dtype, "float32 for an export, without autocast", dtype is None)
    module = segmenter.to_module(resize=resize)
    if kind == ".onnx":
        size = sum(weight.nbytes for weight in module.parameters())
        rule = "less than 2 GiB of weights in an ONNX file: write a .pt2 file"
        params.require("backbone", f"{size:,} bytes", rule, size <= _MOST_BYTES)
    about = _about(segmenter, resize)
    try:
        program = _traced(module, segmenter.backbone.patch_size)
        data, run = (_as_onnx if kind == ".onnx" else _as_pt2)(program, about)
        difference = _difference(segmenter, run, resize)
    except Exception as error:  # torch and ONNX have many, and the backbone may be the user's
        sizes = "" if resize else " for all sizes at once, only with `size` in pixels"
        raise ValueError(
            f"`backbone` must be one that torch can export: {segmenter.recorded_name} is not"
            f"{sizes}, but raises {innermost(error)}"
        ) from error
    if not difference <= TOLERANCE:
        raise ValueError(
            f"`out` must be within {TOLERANCE:g} of the segmenter: {os.fspath(path)!r} would "
            f"differ by {difference:.2g}, and is not written"
        )
    write_atomically(target, lambda file: file.write(data), durable=True)
    return difference


def _about(segmenter: Segmenter, resize: bool) -> dict[str, str]:
    """Returns what a file says of itself: its input, its output, and the segmenter's settings."""
    patch = segmenter.backbone.patch_size
    sides = "of any size" if resize else f"whose sides are multiples of {patch}"
    return {
        "input": f"(batch, 3, height, width) uint8: RGB photographs in 0..255, {sides}",
        "output": "(batch, height, width) float32: saliency in 0..1",
        "settings": json.dumps({**segmenter.settings, "resize": resize}),
    }


def _traced(module: SaliencyModule, patch: int) -> Any:
    """Returns the program of a module for any batch, and for any height and width that it takes."""
    dim = partial(torch.export.Dim, max=1 << 20)  # torch 2.6 wants a limit
    shape = {0: dim("batch"), 2: dim("height"), 3: dim("width")}
    if module.size is None:
        shape |= {2: patch * dim("rows"), 3: patch * dim("columns")}
    example = torch.zeros(2, 3, 4 * patch, 6 * patch, dtype=torch.uint8, device="cpu")
    with SETTINGS.held(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(
            module, (example,), dynamic_shapes={"photo": shape}, strict=False
        )


def _as_onnx(program: Any, about: dict[str, str]) -> tuple[bytes, Run]:
    """Returns an ONNX file, and the function that it computes in ONNX Runtime."""
    with SETTINGS.held(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=_OPSET,
            dynamic_shapes={"photo": {0: "batch", 2: "height", 3: "width"}},  # their names
            verbose=False,
        )
    assert converted is not None
    model = converted.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # lines of source code
    model.metadata_props.update(about)
    data = converted.model_proto.SerializeToString()
    runtime = load_extra("onnxruntime", "ONNX Runtime", "onnx", "an ONNX file")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return data, lambda photo: torch.from_numpy(session.run(None, {INPUT: photo.numpy()})[0])


def _as_pt2(program: Any, about: dict[str, str]) -> tuple[bytes, Run]:
    """Returns a PT2 archive, and the function that it computes."""
    file = io.BytesIO()
    with SETTINGS.held(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, file, extra_files=about)
        file.seek(0)
        return file.getvalue(), torch.export.load(file).module()


def _difference(segmenter: Segmenter, run: Run, resize: bool) -> float:
    """Returns the largest difference between a function's saliency and the segmenter's.

    It compares a drawing and noise, neither of which has the size that was traced.
    """
    patch = segmenter.backbone.patch_size
    side = segmenter.size if resize else 8 * patch
    reference = copy.copy(segmenter)
    reference.share(segmenter)
    differences = []
    for pixels in (_drawing(side + patch, side), _noise(side, side + 3 * patch)):
        if not resize:  # the segmenter then leaves the size as it is, too
            reference.size, reference.keep_aspect = max(pixels.shape[:2]), True
        with torch.no_grad():
            found = run(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())[0]
        differences.append((found - reference(pixels)).abs().max())
    return float(torch.stack(differences).max())


def _drawing(height: int, width: int) -> Pixels:
    """Returns (H, W, 3) pixels: a disc with a soft edge and stripes, on a gradient."""
    y, x = np.mgrid[:height, :width] / np.array([[[height]], [[width]]])
    disc = 1 / (1 + np.exp(60 * (np.hypot(y - 0.55, x - 0.4) - 0.25)))
    stripes = 0.5 + 0.3 * np.sin(90 * (x + y))
    planes = [0.3 + 0.4 * y, 0.6 - 0.3 * x, 0.4 + 0.2 * x * y]
    mixed = [
        plane * (1 - disc) + disc * stripes * share
        for plane, share in zip(planes, (1.2, 0.7, 0.3), strict=True)
    ]
    return (255 * np.stack(mixed, axis=-1).clip(0, 1)).astype(np.uint8)


def _noise(height: int, width: int) -> Pixels:
    """Returns (H, W, 3) random pixels."""
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
