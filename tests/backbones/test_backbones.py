"""Backbones: the features equal timm's, and every mistake has one clear sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from selfment import PseudoLabeler
from selfment.backbones import WeightsError, load_backbone

timm = pytest.importorskip("timm")

DINOV3 = "vit_small_patch16_dinov3.lvd1689m"  # timm's Eva: registers, rotary embedding, no k bias
MODELS = {
    "vit_tiny_patch16_224": 64,
    DINOV3: 64,
    "vit_small_patch14_reg4_dinov2.lvd142m": 56,
    "vit_small_patch16_dinov3_qkvb": 64,
    "eva02_tiny_patch14_224": 56,  # separate k_proj
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Maps a name to timm's model with random weights and a file of its state dict."""
    made: dict[str, tuple[torch.nn.Module, Path]] = {}

    def make(name: str) -> tuple[torch.nn.Module, Path]:
        if name not in made:
            made.clear()
            torch.manual_seed(0)
            model = timm.create_model(name, pretrained=False, dynamic_img_size=True).eval()
            # Random biases: a lost bias of zeros would not be noticed.
            for key, value in model.named_parameters():
                if key.endswith("bias"):
                    torch.nn.init.normal_(value, std=0.5)
            file = tmp_path_factory.mktemp("weights") / f"{name}.pth"
            torch.save(model.state_dict(), file)
            made[name] = model, file
        return made[name]

    return make


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_the_models_normalised_patches(checkpoint, name):
    model, file = checkpoint(name)
    batch = images(MODELS[name])
    backbone = load_backbone(name, weights=file)
    with torch.no_grad():
        # A model has the norm before pooling or after it; the other one is an identity.
        tokens = model.fc_norm(model.forward_features(batch))
        expected = tokens[:, model.num_prefix_tokens :]
    tokens = backbone(batch)
    h, w = backbone.grid(MODELS[name])
    assert tokens.shape == (2, h * w, backbone.dim)
    assert torch.equal(tokens, expected)
    assert backbone.orient == "seed"
    assert "state_dict" not in backbone.model.pretrained_cfg
    assert "state_dict" not in backbone.model.default_cfg


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_keys_are_those_of_the_last_attention(checkpoint, name):
    model, file = checkpoint(name)
    batch = images(MODELS[name])
    seen = {}
    attention = model.blocks[-1].attn
    target = attention.k_proj if getattr(attention, "qkv", None) is None else attention
    hook = target.register_forward_hook(lambda _, args, out: seen.update(x=args[0], out=out))
    with torch.no_grad():
        model.forward_features(batch)
    hook.remove()
    if target is attention:
        d = attention.qkv.out_features // 3
        keys = seen["x"] @ attention.qkv.weight[d : 2 * d].T
        if attention.qkv.bias is not None:
            keys = keys + attention.qkv.bias[d : 2 * d]
    else:
        keys = seen["out"]
    found = load_backbone(name, weights=file, features="keys")(batch)
    assert torch.allclose(found, keys[:, model.num_prefix_tokens :], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", "keys"])
@pytest.mark.parametrize("name", MODELS)
def test_the_cls_tokens_feature_and_its_attention(checkpoint, name, kind):
    model, file = checkpoint(name)
    batch = images(MODELS[name])
    prefix = model.num_prefix_tokens
    attention = model.blocks[-1].attn
    seen = {}
    attention.fused_attn = False  # then the softmax is computed by a separate module
    hook = attention.attn_drop.register_forward_pre_hook(
        lambda _, args: seen.update(softmax=args[0])
    )
    with torch.no_grad():
        tokens = model.fc_norm(model.forward_features(batch))
    hook.remove()
    attention.fused_attn = True
    backbone = load_backbone(name, weights=file, features=kind)
    assert backbone.attends
    plain, given = backbone(batch), backbone.attend(batch)
    assert torch.equal(given.features, plain)
    assert torch.equal(backbone(batch), plain)
    heads = attention.num_heads
    assert given.attention.shape == (2, heads, plain.shape[1])
    assert given.attention.dtype == torch.float32
    expected = seen["softmax"][:, :, 0, prefix:]
    assert expected.std() > 1e-4
    assert torch.allclose(given.attention, expected, atol=1e-6)
    assert given.by_head is (kind == "keys")
    if kind == "tokens":
        assert torch.allclose(given.cls, tokens[:, 0], atol=1e-4)
    else:
        # Keys of the CLS token are computed as those of the patches.
        whole = backbone._tokens(backbone._attending, batch)
        assert torch.equal(given.cls, whole[:, 0])
        assert torch.equal(given.features, whole[:, prefix:])


def test_one_pass_gives_all(checkpoint):
    backbone = load_backbone(DINOV3, weights=checkpoint(DINOV3)[1])
    calls = []
    backbone.model.blocks[-1].register_forward_hook(lambda *_: calls.append(1))
    given = backbone.attend(images(64))
    assert calls == [1]
    assert given.cpu().features is given.features
    assert not given.is_cuda


@pytest.mark.slow
def test_attention_under_autocast(checkpoint):
    file = checkpoint(DINOV3)[1]
    exact = load_backbone(DINOV3, weights=file).attend(images(64))
    fast = load_backbone(DINOV3, weights=file, dtype="bfloat16").attend(images(64))
    assert fast.attention.dtype == fast.cls.dtype == torch.float32
    assert torch.allclose(fast.attention, exact.attention, rtol=0.2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vit_pwee_patch16_reg1_gap_256", "vit_little_patch16_reg1_gap_256"]
)
def test_models_that_do_not_attend(checkpoint, name):
    backbone = load_backbone(name, weights=checkpoint(name)[1])
    assert not backbone.attends  # no plain attention, or no CLS token
    for one in (backbone, load_backbone("classic")):
        message = f"the backbone must be a ViT with a CLS token: got '{one.name}'"
        with pytest.raises(ValueError, match=message):
            one.attend(images(64))
    labeler = PseudoLabeler(name, 64, weights=checkpoint(name)[1], method="found")
    with pytest.raises(ValueError, match=f"needs a ViT's attention: got the backbone '{name}'"):
        _ = labeler.backbone


@pytest.mark.slow
def test_safetensors_and_other_sizes(checkpoint, tmp_path):
    model, _ = checkpoint(DINOV3)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    backbone = load_backbone(DINOV3, weights=tmp_path / "weights.safetensors")
    assert backbone(images(96, 1)).shape == (1, 36, 384)


def test_preprocess_uses_the_models_statistics(checkpoint):
    backbone = load_backbone(DINOV3, weights=checkpoint(DINOV3)[1])
    pixels = backbone.preprocess(Image.new("RGB", (31, 17), (255, 0, 128)), 32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert pixels.shape == (3, 32, 32)
    assert np.allclose(pixels[:, 5, 7], (np.array([1, 0, 128 / 255]) - mean) / std, atol=1e-6)


@pytest.mark.slow
def test_autocast(checkpoint):
    file = checkpoint(DINOV3)[1]
    exact = load_backbone(DINOV3, weights=file)(images(64))
    fast = load_backbone(DINOV3, weights=file, dtype="bfloat16")(images(64))
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, exact)
    assert torch.nn.functional.cosine_similarity(fast, exact, dim=-1).min() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("vit_smal_patch16_dino3", {}, ValueError, "did you mean vit_small_patch16_dinov3"),
        (
            "resnet50",
            {},
            ValueError,
            "must be 'classic', 'statistics' or a plain ViT of timm: got 'resnet50'",
        ),
        (
            "vit_small_patch16_dinov3.x",
            {},
            ValueError,
            "timm knows vit_small_patch16_dinov3.lvd1689m",
        ),
        (DINOV3, {"weights": "absent.pth"}, WeightsError, "'absent.pth' does not exist"),
        (DINOV3, {"features": "values"}, ValueError, "`features` must be 'tokens' or 'keys'"),
        (DINOV3, {"dtype": "int8"}, ValueError, "`dtype` must be one of float32, .*: got 'int8'"),
        ("classic", {"weights": "a.pth"}, ValueError, "'classic' has no such option: got weights"),
        ("classic", {"features": "keys"}, ValueError, "no such option: got features='keys'"),
    ],
)
def test_mistakes(name, options, error, message):
    with pytest.raises(error, match=message):
        load_backbone(name, **options)


@pytest.mark.slow
def test_weights_that_do_not_fit(checkpoint, tmp_path):
    other = checkpoint("vit_tiny_patch16_224")[1]
    with pytest.raises(WeightsError, match=f"must be a checkpoint of {DINOV3}: .* does not fit"):
        load_backbone(DINOV3, weights=other)
    state = torch.load(other)
    del state["blocks.3.mlp.fc1.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"does not fit .*blocks\.3\.mlp\.fc1\.weight"):
        load_backbone("vit_tiny_patch16_224", weights=tmp_path / "part.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(WeightsError, match=r"that torch or safetensors can read: .*text.pth"):
        load_backbone(DINOV3, weights=tmp_path / "text.pth")


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=f"{DINOV3} cannot be downloaded") as caught:
        load_backbone(DINOV3)
    for way_out in ("get online", "--weights FILE", "--backbone classic"):
        assert way_out in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "nearest"), [(100, "96 or 112"), (7, "the nearest is 16"), (0, "the nearest is 16")]
)
def test_sizes_are_multiples_of_the_patch(size, nearest):
    message = f"`size` must be a multiple of 16, .*: got {size}; .*{nearest}"
    with pytest.raises(ValueError, match=message):
        load_backbone("classic").grid(size)


@pytest.mark.slow
def test_a_model_without_keys(checkpoint):
    parallel = "vit_pwee_patch16_reg1_gap_256"
    with pytest.raises(ValueError, match=f"`features` must be 'tokens' with {parallel}"):
        load_backbone(parallel, weights=checkpoint(parallel)[1], features="keys")
