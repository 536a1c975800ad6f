"""Features in files: all formats and shapes, and one sentence for each file without features."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from selfment import PseudoLabeler, pseudo_label
from selfment.backbones.files import FeatureFiles

H, W, D = 3, 4, 5
ROWS = np.random.RandomState(0).randn(H * W, D).astype(np.float32)
WITH_CLS = np.vstack([9 * np.ones((2, D), np.float32), ROWS])


def write(path: Path, content: Any) -> Path:
    """Writes an array, or a dictionary of them, in the format of the suffix."""
    if path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".safetensors":
        save_file({name: torch.from_numpy(array.copy()) for name, array in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def same(read: torch.Tensor, expected: Any = ROWS) -> bool:
    return torch.equal(read.flatten(1).T, torch.as_tensor(expected))


@pytest.mark.parametrize(
    "array",
    [
        ROWS,
        ROWS[None],
        ROWS.reshape(H, W, D),
        ROWS.reshape(1, H, W, D),
        ROWS.T.reshape(D, H, W),
        ROWS.T.reshape(1, D, H, W),
        np.asfortranarray(ROWS),
    ],
    ids=lambda array: "x".join(map(str, array.shape)),
)
def test_shapes(tmp_path: Path, array: Any) -> None:
    read = FeatureFiles((H, W)).read(write(tmp_path / "a.npy", array))
    assert read.shape == (D, H, W)
    assert same(read)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_dtypes_of_numpy(tmp_path: Path, kind: Any) -> None:
    read = FeatureFiles((H, W)).read(write(tmp_path / "a.npy", ROWS.astype(kind)))
    assert same(read, ROWS.astype(np.dtype(kind).newbyteorder("=")))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_dtypes_of_torch(tmp_path: Path, kind: torch.dtype, suffix: str) -> None:
    rows = torch.from_numpy(ROWS).to(kind)
    path = tmp_path / f"a{suffix}"
    if suffix == ".safetensors":
        save_file({"features": rows}, path)
    else:
        torch.save(rows.requires_grad_(), path)
    read = FeatureFiles((H, W)).read(path)
    assert read.dtype == kind
    assert same(read, rows)
    assert not read.requires_grad


def test_the_old_format_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(torch.from_numpy(ROWS), path, _use_new_zipfile_serialization=False)
    assert same(FeatureFiles((H, W)).read(path))


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_files_with_several_arrays(tmp_path: Path, suffix: str) -> None:
    convert = torch.from_numpy if suffix == ".pt" else np.asarray
    one = write(tmp_path / f"one{suffix}", {"patches": convert(ROWS)})
    both = {"patches": convert(ROWS), "cls": convert(ROWS[:1])}
    two = write(tmp_path / f"two{suffix}", both)
    assert same(FeatureFiles((H, W)).read(one))
    assert same(FeatureFiles((H, W), array="patches").read(two))
    sentence = r"`array` must name one of the arrays of a file with several: got None for .*two\..*"
    with pytest.raises(ValueError, match=rf"{sentence}with .*'cls'"):
        FeatureFiles((H, W)).read(two)
    with pytest.raises(ValueError, match=r"`array` must name .*: got 'x' for .* with 'patches'"):
        FeatureFiles((H, W), array="x").read(one)


def test_other_values_of_a_dictionary_are_no_arrays(tmp_path: Path) -> None:
    content = {"features": torch.from_numpy(ROWS), "image": "a.jpg", "size": (48, 64)}
    assert same(FeatureFiles((H, W)).read(write(tmp_path / "a.pt", content)))


def test_prefix_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npy", WITH_CLS)
    with pytest.raises(ValueError, match=r"got \(14, 5\); if tokens .* pass --prefix-tokens 2$"):
        FeatureFiles((H, W)).read(path)
    assert same(FeatureFiles((H, W), prefix_tokens=2).read(path))
    path = write(tmp_path / "b.npy", WITH_CLS[None])
    assert same(FeatureFiles((H, W), prefix_tokens=2).read(path))
    with pytest.raises(ValueError, match=r"must be \(1 \+ 12, d\) or \(1, 1 \+ 12, d\): got"):
        FeatureFiles((H, W), prefix_tokens=1).read(path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.npy", ROWS.T, r"must be \(12, d\) or \(1, 12, d\), .*: got \(5, 12\)$"),
        ("a.npy", ROWS.astype(int), r"its array has the dtype int64, not float16, float32 or"),
        ("a.npy", np.zeros((4, 12, 5)), r"got \(4, 12, 5\)$"),
        ("a.npy", np.zeros((12, 0)), r"got \(12, 0\)$"),
        ("a.npy", np.float32(1), r"got \(\)$"),
        ("a.npy", np.array([{}]), "it is damaged, or has objects, which are not loaded"),
        ("a.pt", torch.zeros(12, 5, dtype=torch.int32), "must be floats: got int32"),
        (
            "a.pt",
            [torch.zeros(12, 5)],
            "must hold a tensor or a dictionary of tensors: got .* list",
        ),
        ("a.pt", {"n": 1}, "must hold an array: got none"),
        ("a.pt", torch.zeros(12, 5).to_sparse(), "the tensor is not a dense tensor"),
        ("a.pt", {"f": torch.zeros(12, 5), "p": Path}, "it is damaged, or has objects, which are"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_files_without_features(tmp_path: Path, name: str, content: Any, sentence: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=sentence) as error:
        FeatureFiles((H, W)).read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cube_is_ambiguous(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npy", np.zeros((4, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"got \(4, 4, 4\); it can be \(h, w, d\) and \(d, h, w\)"):
        FeatureFiles((4, 4)).read(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_broken_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for content in (b"", b"not features", pickle.dumps(Path("x"))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^cannot read {path}: .+"):
            FeatureFiles((H, W)).read(path)
    path.unlink()
    with pytest.raises(ValueError, match=f"^cannot read {path}: No such file or directory$"):
        FeatureFiles((H, W)).read(path)


def test_labels_are_those_of_the_array(tmp_path: Path) -> None:
    rows = np.random.RandomState(1).randn(6 * 7, 16)
    rows[:13] += 2
    files = FeatureFiles((6, 7))
    labeler = PseudoLabeler(files, 7)
    for kind in (np.float16, np.float32, np.float64):
        features = files.read(write(tmp_path / "a.npy", rows.astype(kind)))
        label = labeler.label_batch(torch.stack([features, features]))
        expected = pseudo_label(rows.astype(kind), (6, 7))
        for field in ("mask", "fiedler", "eigenvalue"):
            assert np.array_equal(getattr(label, field)[1].numpy(), getattr(expected, field))
    with pytest.raises(ValueError, match="must compute features of images"):
        labeler(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"grid": (0, 4)}, r"`grid` must be \(h, w\), two integers >= 1: got \(0, 4\)"),
        ({"grid": (4,)}, r"`grid` must be \(h, w\)"),
        ({"grid": (4, 4), "prefix_tokens": -1}, "`prefix_tokens` must be an integer >= 0: got -1"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FeatureFiles(**options)
