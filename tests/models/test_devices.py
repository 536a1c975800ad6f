"""Devices and compilers that are not there: one sentence, before any image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from helpers.heads import a_head
from selfment import PseudoLabeler, Segmenter, cli
from selfment.backbones import load_backbone
from selfment.models.head import HeadInfo, save_head

MISSING = {
    "cuda:99": "`device` must exist: got 'cuda:99', torch sees no such CUDA device",
    "xla": "`device` must be one that torch can use here: got 'xla'",
    "ipu": "`device` must be one that torch can use here: got 'ipu'",
    "meta": "`device` must be one that holds numbers: got 'meta'",
    "gpu": "`device` must be a torch device such as 'cpu': got 'gpu'",
    "": "`device` must be a torch device such as 'cpu': got ''",
}
if not torch.backends.mps.is_available():
    MISSING["mps"] = "`device` must be one that torch can use here: got 'mps'"
if not torch.xpu.is_available():
    MISSING["xpu"] = "`device` must be one that torch can use here: got 'xpu'"


@pytest.mark.slow
@pytest.mark.parametrize("device", MISSING)
def test_a_missing_device_in_python(device: str) -> None:
    picture = Image.new("RGB", (20, 20))
    calls: list[Any] = [
        lambda: load_backbone("classic", device=device),
        lambda: load_backbone("test_vit", device=device),
        lambda: PseudoLabeler("classic", 64, device=device)(picture),
        lambda: Segmenter(a_head(), "classic", 64, device=device)(picture),
    ]
    if device in ("mps", "xpu"):
        calls.append(lambda: load_backbone("classic", device=torch.device(device)))
    for call in calls:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it says is compared below
            call()
        assert str(caught.value).startswith(MISSING[device])
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["label", "train", "predict", "compare"])
@pytest.mark.parametrize("device", MISSING)
def test_a_missing_device_on_the_command_line(
    device: str, command: str, photos_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_head(photos_in.parent, a_head(), HeadInfo("classic"))
    given = {"predict": ["--head", tmp_path], "compare": ["--gt", photos_in]}.get(command, [])
    arguments = [command, photos_in, "--out", tmp_path / "out", "--size", 64, *given]
    code = cli.main([str(part) for part in [*arguments, "--device", device]])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"selfment {command}: {MISSING[device]}")


@pytest.mark.slow
def test_compiling_without_a_compiler(
    photos_in: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not torch._dynamo.is_dynamo_supported():
        pytest.skip("torch.compile does not support this platform")
    # Where nothing is cached, and no compiler is found under either name.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(tmp_path / "c++")))
    torch._dynamo.reset()
    head = tmp_path / "head"
    save_head(head, a_head(), HeadInfo("classic"))
    sentence = "`compile` must be left out where torch.compile does not work"
    segmenter = Segmenter(head, size=64, compile=True)
    for _ in range(2):
        with pytest.raises(ValueError, match=sentence) as caught:
            segmenter(Image.new("RGB", (20, 20)))
        assert len(str(caught.value).splitlines()) == 1
        assert "C++ compiler" in str(caught.value)
    arguments = ["predict", photos_in, "--head", head, "--out", tmp_path / "out", "--size", 64]
    code = cli.main([str(part) for part in [*arguments, "--compile", "--device", "cpu"]])
    err = capsys.readouterr().err
    assert code == 2
    assert err.count(sentence) == 1
    assert not list((tmp_path / "out").glob("*.png"))
