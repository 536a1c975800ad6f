"""Position embeddings are resampled as the models' authors do it, or as timm does on request."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional

from helpers.folders import SHARED
from helpers.vits import DINO, DINO8, DINOV2, REGISTERS, random_state
from selfment import PatchHead, PseudoLabeler, Segmenter, cli
from selfment.backbones import load_backbone, resampling
from selfment.backbones.position_embeddings import scaled, scaled_to_any
from selfment.cli import parser
from selfment.cli.common import model_options
from selfment.methods import SelfMask
from selfment.models.head import HeadInfo, save_head

CASES = SHARED / "cases" / "position_embeddings.npz"
SIZES = ((0, 0), (4, 7), (7, 28), (16, 11))  # patch grids; (0, 0): that of the training


def bicubic(embeddings: np.ndarray, grid: tuple[int, int], offset: float) -> np.ndarray:
    """Resamples (s, s, d) to (h, w, d) float64: Keys' cubic, a = -0.75, no antialiasing.

    Borders are repeated. An output pixel i is at (i + 0.5) / scale - 0.5, where scale is
    (size + offset) / s.
    """
    side, a = len(embeddings), -0.75

    def weight(distance: np.ndarray) -> np.ndarray:
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        return np.where(distance <= 1, near, np.where(distance < 2, far, 0))

    def matrix(size: int) -> np.ndarray:
        places = (np.arange(size) + 0.5) * side / (size + offset) - 0.5
        found = np.zeros((size, side))
        for tap in range(-1, 3):
            column = np.floor(places).astype(int) + tap
            share = weight(np.abs(places - column))
            np.add.at(found, (np.arange(size), column.clip(0, side - 1)), share)
        return found

    h, w = grid
    return np.einsum("is,jt,std->ijd", matrix(h), matrix(w), embeddings)


@pytest.mark.parametrize("grid", [(14, 14), (14, 15), (1, 1), (4, 37), (28, 7), (48, 48)])
def test_the_same_operations_for_any_grid(grid):
    embeddings = torch.randn(1, 197, 6, generator=torch.Generator().manual_seed(0))
    expected = scaled(embeddings, grid)
    found = scaled_to_any(embeddings, grid)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    if grid == (14, 14):
        assert torch.equal(found, embeddings)


def test_the_official_resampling_of_the_cases():
    if not CASES.is_file():
        pytest.skip(f"{CASES.name} is not beside the project")
    patches = {"dino8": 8, "dino16": 16, "dinov2": 14, "dinov2reg": 14}
    cases = np.load(CASES)
    checked = 0
    for key in cases:
        family, _, size = key.partition("_")
        found = re.fullmatch(r"(\d+)x(\d+)", size)
        if found is None:
            continue
        h, w = (int(side) // patches[family] for side in found.groups())
        embeddings = torch.from_numpy(cases[f"{family}_pos_embed"])
        if family == "dinov2reg":  # resampled as timm does
            ours = timm.layers.resample_abs_pos_embed(embeddings, [h, w])
        else:
            ours = scaled(embeddings, (h, w))
        assert np.abs(ours.numpy() - cases[key]).max() <= 1e-6, key
        checked += 1
    assert checked >= 10


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(3, 5), (7, 28), (14, 14), (20, 13), (1, 1), (40, 9)])
def test_scale_factors_and_no_antialiasing(grid):
    embeddings = torch.randn(1, 197, 6, generator=torch.Generator().manual_seed(0))
    found = scaled(embeddings, grid)
    assert torch.equal(found[:, 0], embeddings[:, 0])
    if grid == (14, 14):
        assert found is embeddings
        return
    expected = bicubic(embeddings[0, 1:].reshape(14, 14, 6).double().numpy(), grid, 0.1)
    assert np.abs(found[0, 1:].numpy() - expected.reshape(-1, 6)).max() <= 2e-5  # float32


def official(state: dict[str, torch.Tensor], batch: torch.Tensor, heads: int) -> torch.Tensor:
    """Runs the published forward pass from an official checkpoint's keys; returns (B, N, d)."""
    state = {key: value.double() for key, value in state.items()}
    x, patch = batch.double(), state["patch_embed.proj.weight"].shape[-1]
    h, w = (side // patch for side in batch.shape[-2:])
    tiles = functional.unfold(x, patch, stride=patch).transpose(1, 2)
    x = tiles @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    positions = state["pos_embed"][0]
    side = math.isqrt(len(positions) - 1)
    registers = state.get("register_tokens")
    square = positions[1:].reshape(side, side, -1)
    if (h, w) == (side, side):
        resampled = square
    elif registers is None:
        resampled = torch.from_numpy(bicubic(square.numpy(), (h, w), 0.1))
    else:
        resampled = functional.interpolate(
            square.permute(2, 0, 1)[None], (h, w), mode="bicubic", antialias=True
        )[0].permute(1, 2, 0)
    cls = (state["cls_token"] + positions[0]).expand(len(x), -1, -1)
    first = [cls] if registers is None else [cls, registers.expand(len(x), -1, -1)]
    x = torch.cat([*first, x + resampled.reshape(h * w, -1)], dim=1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6
        )

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    for block in range(1 + max(int(key.split(".")[1]) for key in state if key[:6] == "blocks")):
        name = f"blocks.{block}"
        qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        y = linear((attention @ v).transpose(1, 2).flatten(2), f"{name}.attn.proj")
        x = x + y * state.get(f"{name}.ls1.gamma", 1)
        y = functional.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        x = x + linear(y, f"{name}.mlp.fc2") * state.get(f"{name}.ls2.gamma", 1)
    return norm(x, "norm")[:, len(torch.cat(first, dim=1)[0]) :]


@pytest.fixture(scope="module", params=[DINO, DINO8, DINOV2, REGISTERS])
def model(request, tmp_path_factory):
    """A model's name, a file with random weights under official keys, and these weights."""
    state = random_state(request.param)
    file = tmp_path_factory.mktemp("official") / "weights.pth"
    torch.save(state, file)
    return request.param, file, state


@pytest.mark.slow
def test_features_are_those_of_the_official_forward_pass(model):
    name, file, state = model
    ours, timms = (load_backbone(name, weights=file, positions=p) for p in ("authors", "timm"))
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    for grid in SIZES if side <= 16 else SIZES[1:]:  # the others' own grids take long
        h, w = (extent or side for extent in grid)
        shape = 1, 3, h * ours.patch_size, w * ours.patch_size
        batch = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        expected = official(state, batch, 6)
        assert (ours(batch) - expected).norm() <= 1e-5 * expected.norm(), grid
        differs = (timms(batch) - expected).norm() > 1e-4 * expected.norm()
        assert differs == (name != REGISTERS and (h, w) != (side, side)), grid


@pytest.mark.slow
def test_resampling_starts_from_the_grid_of_the_file(tmp_path):
    state = random_state(DINO)
    stream = torch.Generator().manual_seed(3)
    state["pos_embed"] = torch.randn(1, 1 + 20 * 20, 384, generator=stream)
    torch.save(state, tmp_path / "weights.pth")
    batch = torch.randn(1, 3, 96, 160, generator=stream)
    backbone = load_backbone(DINO, weights=tmp_path / "weights.pth")
    expected = official(state, batch, 6)
    assert (backbone(batch) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        (DINO, "scaled"),
        ("vit_base_patch8_224.dino", "scaled"),
        (DINOV2, "scaled"),
        ("vit_giant_patch14_dinov2", "scaled"),
        (REGISTERS, "timm"),
        ("vit_base_patch16_224.mae", "timm"),
        ("vit_small_patch16_224", "timm"),
        ("vit_base_patch16_clip_224.openai", "timm"),
        ("vit_small_patch16_dinov3.lvd1689m", None),
        ("classic", None),
    ],
)
def test_the_rule_is_in_the_settings(name, rule):
    assert resampling(name, "authors") == rule
    assert PseudoLabeler(name).settings["positions"] == rule
    if name != "classic":
        by_timm = PseudoLabeler(name, positions="timm").settings["positions"]
        assert by_timm == (rule and "timm")


def test_every_name_of_dino_and_dinov2_is_known():
    names = [name for name in timm.list_pretrained("vit_*") if re.search(r"\.dino$|_dinov2", name)]
    assert len(names) >= 12
    for name in timm.list_models("vit_*"):  # a name without a tag means its first weights
        config = timm.get_pretrained_cfg(name)
        if config is not None and config.tag == "dino":
            names.append(name)
    for name in names:
        assert resampling(name, "authors") == ("timm" if "reg4" in name else "scaled")


def test_a_head_remembers_how_its_features_were_made(tmp_path):
    save_head(tmp_path, PatchHead(384), HeadInfo(DINO, "tokens", 64, {}, "timm"))
    segmenter = Segmenter(tmp_path)
    assert segmenter.positions == "timm"
    segmenter.save_pretrained(tmp_path / "again")
    assert Segmenter(tmp_path / "again").settings["positions"] == "timm"
    assert Segmenter(tmp_path, positions="authors").settings["positions"] == "scaled"


def test_voters_are_resampled_alike():
    labeler = PseudoLabeler(DINO, 112, positions="timm", method=SelfMask([DINOV2, "classic"]))
    assert [voter["positions"] for voter in labeler.settings["method"]["voters"]] == ["timm", None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "positions", "message"),
    [
        (DINO, "official", "`positions` must be 'authors' or 'timm': got 'official'"),
        ("classic", "timm", "'classic' has no such option: got positions='timm'"),
    ],
)
def test_mistakes(name, positions, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(name, positions=positions)
    if name != "classic":
        with pytest.raises(ValueError, match=message):
            PseudoLabeler(name, 64, positions=positions)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["label", "train", "predict", "compare"])
def test_the_command_line_says_whose(command, capsys):
    line = [command, "photos", "--out", "out", "--positions"]
    line += {"predict": ["timm", "--head", "head"], "compare": ["timm", "--gt", "gt"]}.get(
        command, ["timm"]
    )
    assert parser().parse_args(line).positions == "timm"
    if command != "predict":
        assert model_options(parser().parse_args(line))["positions"] == "timm"
    line[line.index("timm")] = "official"
    with pytest.raises(SystemExit, match="2"):
        cli.main(line)
    assert "argument --positions: invalid choice: 'official'" in capsys.readouterr().err
