"""Tensors that hold their numbers otherwise than in rows: one sentence that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import selfment
from helpers.cases import smooth
from helpers.heads import a_head
from selfment import Evaluator, PseudoLabeler, Segmenter, reference
from selfment.compat import maskcut, tokencut
from selfment.compat.selfment import unsupervised_saliency_labels
from selfment.core.threshold import auto_tau
from selfment.evaluation import metrics
from selfment.images import draw as visualize
from selfment.methods import MultiObject, as_method, splits
from selfment.models.head import PatchHead
from selfment.training.losses import contrastive, head_loss, soft_dice

GRID = (4, 5)
N, D = 20, 6
ROWS = smooth(*GRID, D)
LABELS = (torch.arange(N) % 2).float()
GRAPH = selfment.affinity(ROWS)
HEAD = PatchHead(D)
LOGITS, EMBEDDING = smooth(*GRID, 2), smooth(*GRID, 128)
MAP = torch.rand(8, 9, generator=torch.Generator().manual_seed(0))
IMAGE = Image.new("RGB", (40, 32))
BATCH = torch.zeros(1, 3, 64, 64)


def nested(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(tensor))


def jagged(tensor: Tensor) -> Tensor:
    rows = tensor if tensor.ndim > 1 else tensor[None]
    return torch.nested.nested_tensor(list(rows), layout=torch.jagged)


KINDS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "sparse": (Tensor.to_sparse, "the layout sparse_coo; call .to_dense() first"),
    "nested": (nested, "a nested one"),
    "jagged": (jagged, "a nested one"),
    "mkldnn": (
        lambda tensor: tensor.float().to_mkldnn(),
        "the layout mkldnn; call .to_dense() first",
    ),
    "meta": (lambda tensor: tensor.to("meta"), "meta"),
    "list": (lambda tensor: tensor.tolist(), "list"),
    "masked array": (lambda tensor: np.ma.masked_less(tensor.numpy(), 0), "MaskedArray"),
}

if hasattr(torch, "quantize_per_tensor"):  # deprecated since torch 2.14
    KINDS["quantized"] = (
        lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8),
        "a quantized one",
    )

labeler = PseudoLabeler("classic", 64)
segmenter = Segmenter(a_head(), "classic", 64)

#: The name of an argument, the value that it may have, and the call.
CALLS: dict[str, tuple[str, Tensor, Callable[[Any], Any]]] = {
    "pseudo_label": ("features", ROWS, lambda x: selfment.pseudo_label(x, GRID)),
    "joint": ("features", ROWS, lambda x: selfment.joint_label(x, [GRID])),
    "affinity": ("features", ROWS, selfment.affinity),
    "ncut": ("features", ROWS, selfment.ncut),
    "ipo": ("features", ROWS, lambda x: selfment.ipo(x, LABELS)),
    "ipo, labels": ("labels", LABELS, lambda x: selfment.ipo(ROWS, x)),
    "matvec": ("x", LABELS, GRAPH.matvec),
    "paint": ("mask", LABELS, GRAPH.paint),
    "multi_label": ("features", ROWS, lambda x: selfment.multi_label(x, GRID)),
    "regions": ("features", ROWS, lambda x: selfment.regions(x, GRID, k=2)),
    "reference": ("features", ROWS, lambda x: reference.pseudo_label(x, GRID)),
    "reference, labels": ("labels", LABELS, lambda x: reference.ipo(ROWS, x)),
    "head": ("features", ROWS, HEAD),
    "saliency": ("features", ROWS, HEAD.saliency),
    "loss, logits": ("logits", LOGITS, lambda x: head_loss(x, EMBEDDING, LABELS)),
    "loss, embedding": ("embedding", EMBEDDING, lambda x: head_loss(LOGITS, x, LABELS)),
    "loss, labels": ("labels", LABELS, lambda x: head_loss(LOGITS, EMBEDDING, x)),
    "contrastive": ("embedding", EMBEDDING, lambda x: contrastive(x, LABELS)),
    "contrastive, labels": ("labels", LABELS, lambda x: contrastive(EMBEDDING, x)),
    "dice": ("probability", LABELS, lambda x: soft_dice(x, LABELS)),
    "dice, target": ("target", LABELS, lambda x: soft_dice(LABELS, x)),
    "label_features": ("features", smooth(4, 4, 384)[None], labeler.label_features),
    "label_batch": ("batch", BATCH, labeler.label_batch),
    "label_batch of objects": (
        "batch",
        BATCH,
        PseudoLabeler("classic", 64, method=MultiObject(2)).label_batch,
    ),
    "saliency_batch": ("batch", BATCH, segmenter.saliency_batch),
    "iou": ("saliency", MAP, lambda x: metrics.iou(x, MAP)),
    "iou, truth": ("truth", MAP, lambda x: metrics.iou(MAP, x)),
    "evaluator": ("pred", MAP, lambda x: Evaluator("paper").update(x, MAP)),
    "evaluator, truth": ("gt", MAP, lambda x: Evaluator("paper").update(MAP, x)),
    "refine_mask": ("mask", MAP, lambda x: selfment.refine_mask(x, IMAGE)),
    "tokencut": (
        "feats",
        torch.cat([ROWS[:1], ROWS])[None],
        lambda x: tokencut.ncut(x, GRID, (8, 8), (3, 32, 40)),
    ),
    "maskcut": (
        "feats",
        ROWS.T.contiguous(),
        lambda x: maskcut.maskcut_forward(x, GRID, (8, 8), (32, 40)),
    ),
    "selfment": ("feats", ROWS, lambda x: unsupervised_saliency_labels(x, *GRID)),
}
CALLS |= {
    "detect_box": (
        "bipartition",
        LABELS.reshape(GRID),
        lambda x: tokencut.detect_box(x, 1, GRID, scales=(8, 8)),
    ),
    "saliency image": ("saliency", MAP, visualize.saliency_image),
    "tint of saliency": ("saliency", MAP, lambda x: visualize.tint_saliency(IMAGE, x)),
    "tint of a mask": ("mask", MAP > 0.5, lambda x: visualize.tint(IMAGE, x)),
    "instances": ("instances", (MAP > 0.5).int(), lambda x: visualize.overlay_instances(IMAGE, x)),
    "auto_tau": ("features", ROWS[None], auto_tau),
    "k-means": ("features", ROWS, lambda x: splits.kmeans_split(x, GRID)),
    "CLS token": ("features", ROWS, lambda x: splits.cls_split(x, ROWS[0])),
}
for _method in ("tokencut", "maskcut", "dsm", "selfmask", "selfment-kmeans"):
    CALLS[f"method {_method}"] = (
        "features",
        ROWS[None],
        lambda x, method=_method: as_method(method).label(x, GRID),
    )
#: What takes whatever numpy does, lists of numbers among it.
TAKES_LISTS = (
    "refine_mask",
    "detect_box",
    "saliency image",
    "tint of saliency",
    "tint of a mask",
    "instances",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(nested tensors|quantize_per_tensor)")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CALLS)
def test_one_sentence(call, kind):
    name, value, function = CALLS[call]
    make, received = KINDS[kind]
    function(value)  # a dense tensor is right
    if kind == "list" and call in TAKES_LISTS:
        function(make(value))
        return
    with pytest.raises((TypeError, ValueError)) as caught:
        function(make(value))
    text = str(caught.value)
    assert text.startswith(f"`{name}` must be "), text
    assert text.partition(": got ")[2], text
    assert received in text, text
    assert len(text.splitlines()) == 1
    assert len(text) < 200


def test_negated_views_are_their_values():
    """Of a conjugated number torch keeps the imaginary part with a note that it is negated."""
    turned = torch.complex(ROWS, -ROWS).conj().imag
    assert turned.is_neg()
    expected = selfment.pseudo_label(ROWS, GRID)
    found = selfment.pseudo_label(turned, GRID)
    assert torch.equal(found.fiedler, expected.fiedler)
    column = torch.complex(ROWS[:, :1], -ROWS[:, :1]).conj().imag[:, 0].contiguous()
    assert torch.equal(GRAPH.matvec(column), GRAPH.matvec(ROWS[:, 0].contiguous()))
