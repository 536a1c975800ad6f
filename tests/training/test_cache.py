"""The cache of features and labels."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.training import equal, pictures, run
from selfment import CutOptions, PseudoLabeler
from selfment.images.load import find_images
from selfment.methods import Selfment
from selfment.training.cache import TensorCache
from selfment.training.run import train


def test_nothing_is_extracted_or_labelled_twice(folder: Path, tmp_path: Path, monkeypatch) -> None:
    calls: list[str] = []
    for name in ("label_features", "preprocess"):
        original = getattr(PseudoLabeler, name)

        def counted(self, *values, name=name, original=original):
            calls.append(name)
            return original(self, *values)

        monkeypatch.setattr(PseudoLabeler, name, counted)
    cache = tmp_path / "cache"
    run(folder, tmp_path / "a", cache=cache)
    assert sorted(calls) == ["label_features"] * 3 + ["preprocess"] * 6
    calls.clear()
    run(folder, tmp_path / "b", cache=cache, lr=1e-2)
    assert calls == []
    # Other labels of the same features.
    labeler = PseudoLabeler(size=96, method=Selfment(CutOptions(tau=0.4)))
    train(find_images([folder]), tmp_path / "c", labeler, cache=cache, epochs=1, progress=False)
    assert calls == ["label_features"] * 6
    calls.clear()
    # The same content under another name.
    renamed = pictures(tmp_path / "renamed", 1)
    (renamed / "00.png").rename(renamed / "x.png")
    run(renamed, tmp_path / "d", cache=cache)
    assert calls == []
    # Other content under the same name.
    changed = tmp_path / "changed"
    changed.mkdir()
    Image.new("RGB", (64, 64), (9, 99, 200)).save(changed / "01.png")
    run(changed, tmp_path / "e", cache=cache)
    assert calls.count("preprocess") == 1


@pytest.mark.slow
def test_half_precision_features(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "a", feature_dtype="bfloat16")
    run(folder, tmp_path / "b", feature_dtype="bfloat16", use_cache=False)
    assert equal(tmp_path / "a", tmp_path / "b")
    largest = max(p.stat().st_size for p in (tmp_path / "a/cache").rglob("*.safetensors"))
    assert 36 * 384 * 2 <= largest < 36 * 384 * 2 + 200


def test_the_cache_knows_the_weights_that_were_loaded(folder: Path, tmp_path: Path) -> None:
    import timm

    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
        torch.save(model.state_dict(), tmp_path / f"{name}.pth")
    weights = tmp_path / "weights.pth"
    (tmp_path / "a.pth").rename(weights)

    def trained(out: Path, labeler: PseudoLabeler) -> Path:
        options = {"cache": tmp_path / "cache", "epochs": 1, "progress": False}
        train(find_images([folder]), out, labeler, **options)
        return out

    def labeler() -> PseudoLabeler:
        return PseudoLabeler("vit_tiny_patch16_224", 64, weights=weights)

    first = labeler()
    _ = first.backbone
    (tmp_path / "b.pth").rename(weights)
    trained(tmp_path / "old", first)
    trained(tmp_path / "new", labeler())
    assert not equal(tmp_path / "old", tmp_path / "new")


def test_cache(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path, limit=5000)
    tensor = torch.arange(1000, dtype=torch.int16)
    assert cache.get("ab12") is None
    assert cache.put("ab12", tensor)
    assert torch.equal(cache.get("ab12"), tensor)
    assert cache.put("cd34", tensor)
    assert not cache.put("ef56", tensor)  # over the limit
    assert not TensorCache(tmp_path, limit=5000).put("ef56", tensor)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`cache` must be a folder: got .*file/cache'"):
        TensorCache(tmp_path / "file/cache")
    # Cut off, as by a power failure: there is no such tensor.
    (tmp_path / "ab/ab12.safetensors").write_bytes(b"\x10")
    assert cache.get("ab12") is None


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_cache_that_takes_nothing(
    folder: Path, tmp_path: Path, monkeypatch, capsys, trouble: str
) -> None:
    run(folder, tmp_path / "whole")
    capsys.readouterr()
    if trouble == "full":
        usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    else:

        def refuse(path, write):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr("selfment.training.cache.write_atomically", refuse)
    assert run(folder, tmp_path / "run").failed == 0
    assert equal(tmp_path / "whole", tmp_path / "run")
    assert capsys.readouterr().err.count("cache: not all is kept in") == 1
    assert not list((tmp_path / "run").glob("cache/*/*"))
