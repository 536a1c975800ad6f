"""The torch operators: their schema, fake tensors, torch.compile, and what they must not cost."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import selfment
from helpers import processes
from helpers.cases import generator, smooth

OPS = torch.ops.selfment
GRAPH = (0.2, 1e-5, "binary")


def features() -> Tensor:
    return torch.stack([smooth(6, 9, 20, seed=s) for s in range(3)])


def labels() -> Tensor:
    return torch.rand(3, 54, generator=generator(0)) < 0.5


FIELDS = tuple(field.name for field in fields(selfment.PseudoLabels))


def values(found: selfment.PseudoLabels) -> tuple[Tensor, ...]:
    return tuple([getattr(found, name) for name in FIELDS])


# Calls of the public functions, with what they answer as a tuple of tensors.
CALLS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "pseudo_label": lambda f: values(selfment.pseudo_label(f, (6, 9))),
    "pseudo_label of one": lambda f: values(selfment.pseudo_label(f[0], (6, 9))),
    "pseudo_label of maps": lambda f: values(
        selfment.pseudo_label(
            f.transpose(1, 2).unflatten(2, (6, 9)),
            graph="weighted",
            orient="corners",
            tau="auto",
            min_confidence=0.5,
        )
    ),
    "joint pseudo_label": lambda f: values(selfment.joint_label(f, (6, 9))),
    "joint pseudo_label of a list": lambda f: tuple(
        selfment.joint_label(f.flatten(0, 1)[:108], [(6, 9), (54, 1)]).mask
    ),
    "ncut": lambda f: selfment.ncut(f, k=3, tau=0.3),
    "ncut at its own threshold": lambda f: selfment.ncut(f, k=3, tau="auto"),
    "ipo": lambda f: (selfment.ipo(f, (f[..., 0] > 0).int(), iters=5),),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_operators_are_what_they_claim(dtype: torch.dtype) -> None:
    rows = features().to(dtype)
    opcheck(OPS.pseudo_label.default, (rows, 6, 9, *GRAPH, "seed", 20, 10))
    opcheck(OPS.pseudo_label.default, (rows[:, ::2], 3, 9, 0.2, 0.1, "weighted", "corners", 0, 1))
    opcheck(OPS.pseudo_label.default, (rows[:, :1], 1, 1, *GRAPH, "seed", 20, 10))
    opcheck(OPS.joint_label.default, (rows[0], [6, 9], *GRAPH, "seed", 20, 10))
    sides = [5, 4, 1, 7]
    opcheck(OPS.joint_label.default, (rows[0, ::2], sides, 0.2, 0.1, "weighted", "corners", 0, 1))
    opcheck(OPS.pseudo_label.default, (rows, 6, 9, None, 1e-5, "binary", "seed", 20, 10, 0.5))
    opcheck(OPS.ncut.default, (rows, 2, *GRAPH, "peak"))
    opcheck(OPS.ipo.default, (rows, labels(), 20, 10))
    opcheck(OPS.ipo.default, (rows, labels().to(dtype), 20, 10))


def test_a_batch_that_is_cut_gives_what_the_operator_claims(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("selfment.core.twins._CPU_BYTES", 1)
    opcheck(OPS.pseudo_label.default, (features(), 6, 9, *GRAPH, "seed", 20, 10))


@cache
def fake_cuda_needs_a_driver() -> bool:
    """torch 2.6 asks it about any index into a fake CUDA tensor."""
    try:
        with FakeTensorMode():
            torch.empty(2, device="cuda")[0]
    except RuntimeError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("call", CALLS)
def test_fake_tensors_have_the_true_shapes(call: str, device: str) -> None:
    if device == "cuda" and fake_cuda_needs_a_driver():
        pytest.skip("this torch cannot index fake CUDA tensors without a driver")
    expected = CALLS[call](features())
    with FakeTensorMode():
        fake = CALLS[call](torch.empty(3, 54, 20, device=device))
    for ours, true in zip(fake, expected, strict=True):
        assert (ours.shape, ours.dtype, ours.stride()) == (true.shape, true.dtype, true.stride())
        assert ours.device.type == device


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("call", CALLS)
def test_compiles_without_a_break(call: str, backend: str, dynamic: bool) -> None:
    torch.compiler.reset()
    compiled: Any = torch.compile(CALLS[call], fullgraph=True, backend=backend, dynamic=dynamic)
    for rows in (features(), features()[:2] + 0.1):
        for ours, eager in zip(compiled(rows), CALLS[call](rows), strict=True):
            assert torch.equal(ours, eager)


def test_compiled_code_raises_what_eager_code_does() -> None:
    torch.compiler.reset()
    compiled: Any = torch.compile(CALLS["pseudo_label"], fullgraph=True, backend="eager")
    rows = features()
    rows[2, 5, 1] = float("nan")
    with pytest.raises(ValueError, match="in patch 5 of image 2"):
        compiled(rows)


def test_the_warning_names_the_line_that_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfment.core.ncut._CONVERGED", -1.0)
    made = selfment.affinity(features())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        selfment.ncut(made)
        selfment.ncut(features())
        selfment.pseudo_label(features(), (6, 9))
    assert [warning.filename for warning in caught] == [__file__] * 3


def test_no_gradient_comes_through() -> None:
    rows = features().requires_grad_()
    assert not any(found.requires_grad for call in CALLS.values() for found in call(rows))


@pytest.mark.slow
def test_a_call_does_not_load_the_compiler() -> None:
    """Seconds, and more memory than the labels take."""
    script = """
import sys, torch, selfment
features = torch.rand(12, 8)
selfment.pseudo_label(features, (3, 4))
selfment.ncut(features)
selfment.ipo(features, features[:, 0] > 0.5)
print("torch._dynamo" in sys.modules)
"""
    run = processes.run([sys.executable, "-c", script], check=True)
    assert run.stdout.strip() == "False"
