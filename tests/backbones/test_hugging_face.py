"""ViTs of transformers have the features of the same weights in timm and in the authors' files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers import processes
from helpers.vits import (
    DINO,
    DINOV2,
    DINOV3,
    REGISTERS,
    random_state,
    save,
    to_transformers,
)
from selfment import PseudoLabeler
from selfment.backbones import WeightsError, load_backbone

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
SIZES = [(3, 5), (16, 16), (20, 7)]  # in patches
COLOURS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def folder(path: Path, kind: str, state: dict[str, torch.Tensor], **config: object) -> Path:
    """A folder of the hub."""
    path.mkdir()
    about = transformers.AutoConfig.for_model(kind, **{**SMALL, **config})
    about.save_pretrained(path)
    safetensors.save_file(state, path / "model.safetensors", {"format": "pt"})
    (path / "preprocessor_config.json").write_text(json.dumps(COLOURS))
    return path


def with_mlp(config: dict[str, object], ratio: int = 4) -> dict[str, object]:
    return {**config, "intermediate_size": 384 * ratio, "mlp_ratio": ratio}


MODELS = {
    DINO: ("vit", "vit", "dino-vits16", {"patch_size": 16, "image_size": 224}),
    DINOV2: ("dinov2", "dinov2", "small", {"patch_size": 14, "image_size": 518}),
    REGISTERS: ("dinov2_with_registers", "dinov2", "small", {"patch_size": 14, "image_size": 518}),
    DINOV3: ("dinov3_vit", "dinov3", "small", {"patch_size": 16, "num_register_tokens": 4}),
}


FEATURES = """
import sys, torch
from selfment.backbones import load_backbone
name, weights, out = sys.argv[1:]
backbone = load_backbone(name, weights=weights or None)
stream = torch.Generator().manual_seed(1)
found = []
for patches in {sizes}:
    sides = [count * backbone.patch_size for count in patches]
    found.append(backbone(torch.randn(1, 3, *sides, generator=stream)))
torch.save(found, out)
"""


def at_all_sizes(out: Path, name: str, weights: Path | None = None) -> list[torch.Tensor]:
    """The features of random images of all sizes, by a process that then frees its memory."""
    script = FEATURES.format(sizes=SIZES)
    command = [sys.executable, "-c", script, name, weights or "", out]
    processes.run(command, check=True)
    features: list[torch.Tensor] = torch.load(out)
    return features


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_timm_and_of_the_authors_file(name: str, tmp_path: Path) -> None:
    kind, keys, path, config = MODELS[name]
    state = random_state(name)
    file = save(state, tmp_path / "authors.pth")
    converted = to_transformers(state, keys)
    if kind == "dinov3_vit":
        del converted["embeddings.mask_token"]  # of another shape there
    hub = folder(tmp_path / path, kind, converted, **with_mlp(config))
    del state, converted
    out = tmp_path / "features.pt"
    expected = at_all_sizes(out, name, file)
    for ours in (at_all_sizes(out, name, hub), at_all_sizes(out, f"hf:{hub}")):
        for features, wanted in zip(ours, expected, strict=True):
            assert torch.allclose(features, wanted, atol=1e-4)


@pytest.mark.slow
def test_masked_autoencoders_see_the_whole_image(tmp_path: Path) -> None:
    name = "vit_small_patch16_224"
    state = to_transformers(random_state(name), "vit")
    hub = folder(tmp_path / "mae", "vit_mae", state, **with_mlp({"patch_size": 16}))
    out = tmp_path / "features.pt"
    expected = at_all_sizes(out, name, hub)
    ours, again = at_all_sizes(out, f"hf:{hub}"), at_all_sizes(out, f"hf:{hub}")
    for features, same, wanted in zip(ours, again, expected, strict=True):
        assert torch.equal(features, same)
        assert torch.allclose(features, wanted, atol=1e-4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of two blocks."""
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, patch_size=8, image_size=64
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hub") / "tiny"
    transformers.Dinov2Model(config).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(COLOURS))
    return path


def test_a_labeler_records_the_files(tiny: Path) -> None:
    labeler = PseudoLabeler(f"hf:{tiny}", 64, device="cpu")
    label = labeler(Image.effect_noise((64, 64), 60).convert("RGB"))
    assert label.mask.shape == (8, 8)
    settings = labeler.settings
    assert settings["weights"][0] == "tiny"
    assert settings["weights"][1] == (tiny / "model.safetensors").stat().st_size
    assert load_backbone(f"hf:{tiny}").mean == tuple(COLOURS["image_mean"])


def test_what_cannot_be_loaded(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'hf:.*nothing' cannot be loaded"):
        load_backbone(f"hf:{tmp_path}/nothing")
    transformers.CLIPVisionConfig().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="its model_type is 'clip_vision_model', not one of"):
        load_backbone(f"hf:{tmp_path}")
    state = safetensors.load_file(tiny / "model.safetensors")
    part = {key: value for key, value in state.items() if "query" not in key}
    hub = folder(tmp_path / "part", "dinov2", part)
    (hub / "config.json").write_text((tiny / "config.json").read_text())
    with pytest.raises(WeightsError, match="it lacks 4 weights"):
        load_backbone(f"hf:{hub}")
    with pytest.raises(ValueError, match=r"must be left alone with 'hf:.*: got 'keys' and"):
        load_backbone(f"hf:{tiny}", features="keys")


def test_transformers_is_imported_when_it_is_needed() -> None:
    code = "import sys, selfment.backbones; assert 'transformers' not in sys.modules"
    processes.run([sys.executable, "-c", code], check=True)


def test_the_size_fits_the_patches_of_the_folder(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "my_patch16_run"
    path.symlink_to(tiny)
    (labeler, same) = PseudoLabeler(f"hf:{path}"), PseudoLabeler(f"hf:{path}/")
    assert (labeler.size, PseudoLabeler(f"hf:{path}", 8).size) == (768, 8)
    with pytest.raises(ValueError, match="`size` must be a multiple of 8"):
        PseudoLabeler(f"hf:{path}", 100)
    monkeypatch.chdir(tmp_path)
    assert labeler.settings == same.settings == PseudoLabeler("hf:my_patch16_run").settings
    assert labeler.settings["backbone"] == "hf:tiny"
