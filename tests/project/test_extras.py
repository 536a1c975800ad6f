"""Without the extras: images and features are labelled, and errors name the missing extra.

Each test runs a process that cannot import the libraries of the extras, so that the result does not
depend on which are installed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXTRAS = ("skimage", "sklearn", "threadpoolctl", "cv2", "py_sod_metrics", "tensorboard", "kornia")
MISSING = f"""
import sys
from importlib.machinery import PathFinder

class Core(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missing = {(*EXTRAS, "pycocotools", "av", "onnxscript", "pyarrow", "ray", "cupy")!r}
        return None if name.split(".")[0] in missing else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Core
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MISSING + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def command(*words: str) -> str:
    return f"from selfment.cli import main\nsys.exit(main({list(words)!r}))"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    code = """
import numpy as np
from PIL import Image
pixels = np.random.RandomState(0).randint(60, 90, (120, 160, 3)).astype(np.uint8)
pixels[30:90, 50:110] = (220, 60, 30)
Image.fromarray(pixels).save("thing.png")
"""
    assert run(code, tmp_path).returncode == 0
    (tmp_path / "photos").mkdir()
    (tmp_path / "thing.png").rename(tmp_path / "photos/thing.png")
    return tmp_path


def test_images_are_labelled_into_a_tar_file(photos: Path) -> None:
    words = ("label", "photos", "--out", "out", "--to", "tar", "--size", "160")
    done = run(command(*words), photos)
    assert done.returncode == 0, done.stderr
    assert len(list((photos / "out").glob("*.tar"))) == 1


def test_features_and_images_are_labelled(photos: Path) -> None:
    code = """
import torch, selfment
label = selfment.pseudo_label(torch.randn(30, 16), (5, 6))
assert label.mask.shape == (5, 6)
assert selfment.multi_label(torch.randn(30, 16), (5, 6), max_objects=2) is not None
"""
    done = run(code + command("label", "photos", "--out", "out", "--size", "160"), photos)
    assert done.returncode == 0, done.stderr
    assert (photos / "out/thing.png").is_file() or list((photos / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("label", "--samples", "--out", "out"),
            "the sample photographs need scikit-image, which is missing here: "
            'pip install "selfment[samples]"',
        ),
        (
            ("train", "photos", "--out", "out", "--size", "160"),
            'training needs TensorBoard, which is missing here: pip install "selfment[train]"',
        ),
        (
            ("eval", "--pred", "photos", "--gt", "photos"),
            'a score of the protocol "pysod" needs PySODMetrics, which is missing here: '
            'pip install "selfment[eval]"',
        ),
        (
            ("label", "photos", "--out", "out", "--size", "160", "--method", "selfment-kmeans"),
            'k-means needs scikit-learn, which is missing here: pip install "selfment[methods]"',
        ),
        (
            ("label", "photos", "--out", "out", "--size", "160", "--format", "coco"),
            'a COCO file needs pycocotools, which is missing here: pip install "selfment[coco]"',
        ),
        (
            ("label", "photos", "--out", "out", "--size", "160", "--engine", "ray"),
            "the engine 'ray' needs Ray, which is missing here: pip install \"selfment[ray]\"",
        ),
        (
            ("label", "photos", "--out", "out", "--size", "160", "--to", "parquet"),
            'a Parquet file needs PyArrow, which is missing here: pip install "selfment[shards]"',
        ),
        (
            ("label", "photos", "--out", "s3://bucket/labels", "--size", "160"),
            '`out` as a URL needs PyArrow, which is missing here: pip install "selfment[shards]"',
        ),
        (
            ("label", "photos", "--out", "out", "--size", "160", "--refine", "guided"),
            'method "guided" needs kornia, which is missing here: pip install "selfment[refine]"',
        ),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, tuple) else "",
)
def test_a_missing_extra_is_one_sentence(
    photos: Path, words: tuple[str, ...], sentence: str
) -> None:
    done = run(command(*words), photos)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"selfment {words[0]}: {sentence}"
    assert "Traceback" not in done.stderr


def test_a_missing_extra_of_an_export(photos: Path) -> None:
    code = """
from selfment import PatchHead
from selfment.models.head import HeadInfo, save_head
save_head("head", PatchHead(384), HeadInfo("classic"))
"""
    words = ("export", "--head", "head", "--out", "model.onnx")
    done = run(code + command(*words), photos)
    assert done.returncode == 2
    assert done.stderr == (
        "selfment export: an ONNX file needs onnxscript, which is missing here: "
        'pip install "selfment[onnx]"\n'
    )


def test_scores_of_the_paper_need_no_extra(photos: Path) -> None:
    done = run(command("label", "photos", "--out", "photos-out", "--size", "160"), photos)
    assert done.returncode == 0, done.stderr
    words = ("eval", "--pred", "photos-out", "--gt", "photos-out", "--protocol", "paper")
    done = run(command(*words), photos)
    assert done.returncode == 0, done.stderr
