"""The example that goes from photographs to a model that runs without selfment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from helpers import processes
from helpers.folders import ROOT
from helpers.scenes import scene

pytest.importorskip("onnxruntime")
pytest.importorskip("skimage")

pytestmark = pytest.mark.skipif(not (ROOT / "examples").exists(), reason="needs the source tree")


@pytest.mark.slow
def test_labels_become_a_model_that_runs_elsewhere(tmp_path: Path) -> None:
    for number in range(8):
        scene(tmp_path / f"photos/{number}.jpg", (96 + 8 * number, 96), number)
    options = ("--size", "96", "--reject", "2", "--epochs", "60", "--out", tmp_path / "out")
    done = processes.run(
        [sys.executable, "examples/whole_way.py", "--photos", tmp_path / "photos", *options],
        cwd=ROOT,
        check=True,
    )
    assert "rejected 2 of 8 labels" in done.stdout
    assert "and 0_saliency.png differ by 0.00" in done.stdout
    assert len((tmp_path / "out/accepted.txt").read_text().split()) == 6
    for name in ("labels.html", "scores.html", "model.onnx", "saliency/overlays/0_overlay.jpg"):
        assert (tmp_path / "out" / name).stat().st_size > 0
