"""Backbones of one's own: modules, functions and factories."""

from __future__ import annotations

import json
import pickle
import warnings
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from helpers.commands import call
from selfment import PatchHead, PseudoLabeler, Segmenter
from selfment.backbones import ModuleBackbone, load_backbone
from selfment.images.load import find_images
from selfment.jobs.label import label_images
from selfment.models.head import HeadInfo, save_head

COLOURS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
FACTORY = """
import torch

class Net(torch.nn.Module):
    patch_size = 8
    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 8, 8)

    def forward(self, batch):
        return self.conv(batch)

def net():
    torch.manual_seed(0)
    return Net()

def broken():
    raise OSError("no such file")
"""


class Net(nn.Module):
    """Features of patches of 8 pixels, as a map or as tokens after a prefix."""

    def __init__(self, kind: str = "map", prefix: int = 0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 16, 8, 8)
        self.dropout = nn.Dropout(0.5)
        self.kind, self.prefix = kind, prefix

    def forward(self, batch: Tensor) -> object:
        features = self.dropout(self.conv(batch))
        if self.kind == "map":
            return features
        rows = features.flatten(2).transpose(1, 2)
        tokens = torch.cat([rows.new_ones(len(rows), self.prefix, 16), rows], dim=1)
        if self.kind == "object":
            return SimpleNamespace(last_hidden_state=tokens, pooler_output=tokens[:, 0])
        return {"x_norm_patchtokens": rows} if self.kind == "mapping" else tokens


def photo() -> Image.Image:
    pixels = torch.randint(60, 90, (64, 80, 3), generator=torch.Generator().manual_seed(0))
    pixels[16:48, 24:56] = torch.tensor([220, 60, 30])
    return Image.fromarray(pixels.byte().numpy())


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("kind", ["map", "tokens", "object", "mapping"])
def test_all_outputs_are_the_same_features(kind: str, prefix: int) -> None:
    batch = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    backbone = ModuleBackbone(Net(kind, prefix), patch_size=8, **COLOURS)
    expected = Net().eval().conv(batch).flatten(2).transpose(1, 2)
    assert (backbone.dim, backbone.grid(24, 40), backbone.attends) == (16, (3, 5), False)
    assert torch.equal(backbone(batch), expected)
    assert backbone(batch).dtype == torch.float32


def test_a_function_is_a_backbone() -> None:
    net = Net().eval()
    labeler = PseudoLabeler(
        ModuleBackbone(lambda batch: net(batch), patch_size=8, name="net", **COLOURS), 64
    )
    module = PseudoLabeler(ModuleBackbone(net, patch_size=8, **COLOURS), 64)
    assert torch.equal(labeler(photo()).fiedler, module(photo()).fiedler)


def test_a_vit_of_timm_is_described_by_itself() -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    backbone = ModuleBackbone(vit)
    assert (backbone.patch_size, backbone.dim) == (16, 192)
    assert backbone.mean == vit.pretrained_cfg["mean"]
    batch = torch.rand(1, 3, 64, 64)
    assert torch.equal(backbone(batch), vit.eval().forward_features(batch)[:, 1:])


def labeler_of(model: object = None, **options: object) -> PseudoLabeler:
    options = {"patch_size": 8, **COLOURS, **options}
    return PseudoLabeler(ModuleBackbone(model or Net(), **options), 64)


def test_settings_tell_all_that_features_depend_on_apart() -> None:
    made = [
        labeler_of(),
        labeler_of(Net(seed=1)),
        labeler_of(mean=(0.5, 0.4, 0.2)),
        labeler_of(std=(0.2, 0.3, 0.5)),
        labeler_of(Net("tokens"), prefix_tokens=0),
        labeler_of(dtype=torch.bfloat16),
        labeler_of(orient="corners"),
        labeler_of(name="another"),
        labeler_of(Net().forward, name="a"),
        labeler_of(Net().forward, name="b"),
        PseudoLabeler(load_backbone("classic"), 64),
        PseudoLabeler("classic", 64),
    ]
    settings = [json.dumps(labeler.settings, sort_keys=True) for labeler in made]
    assert len(set(settings)) == len(made)
    assert json.dumps(labeler_of().settings, sort_keys=True) == settings[0]


def test_another_model_labels_anew(tmp_path) -> None:
    photo().save(tmp_path / "photo.png")
    images, out = find_images([tmp_path / "photo.png"]), tmp_path / "out"
    for labeler, done in (
        (labeler_of(), 1),
        (labeler_of(), 0),
        (labeler_of(mean=(0, 0, 0)), 1),
        (labeler_of(Net(seed=1)), 1),
    ):
        assert label_images(images, out, labeler, progress=False).labelled == done


def test_labelers_are_pickled() -> None:
    labeler = labeler_of()
    copied = pickle.loads(pickle.dumps(labeler))
    assert copied.settings == labeler.settings
    assert copied.settings["backbone"].startswith("own:")
    assert torch.equal(copied(photo()).mask, labeler(photo()).mask)


def test_modules_in_double_precision() -> None:
    backbone = ModuleBackbone(Net().double(), patch_size=8, **COLOURS)
    features = backbone(torch.rand(1, 3, 16, 16))
    assert features.dtype == torch.float32
    backbone.model.train()
    with pytest.raises(ValueError, match="`model` must be in evaluation mode"):
        backbone(torch.rand(1, 3, 16, 16))


def test_numbers_of_other_libraries_are_numbers() -> None:
    mean, std = np.array(COLOURS["mean"]), torch.tensor(COLOURS["std"])
    backbone = ModuleBackbone(Net(), patch_size=np.int64(8), mean=mean, std=std)
    assert (backbone.patch_size, backbone.mean) == (8, COLOURS["mean"])
    assert ModuleBackbone(Net(), patch_size=(8, 8), **COLOURS).patch_size == 8


def test_a_loaded_backbone_is_taken_as_it_is() -> None:
    named = PseudoLabeler("classic", 64)
    taken = PseudoLabeler(load_backbone("classic"), 64)
    assert torch.equal(named(photo()).mask, taken(photo()).mask)
    assert (taken.size, taken.backbone_name, taken.method) == (64, "classic", named.method)


def test_segmenters_take_modules() -> None:
    backbone = ModuleBackbone(Net(), patch_size=8, **COLOURS)
    segmenter = Segmenter(PatchHead(16), backbone, 64)
    assert segmenter(photo()).shape == (64, 80)
    assert "Net" in segmenter.settings["backbone"]


@pytest.fixture
def factory(tmp_path, monkeypatch) -> str:
    """The name of a factory in a module that only the current folder has."""
    (tmp_path / "my_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_models", raising=False)
    return "my_models:net"


def test_the_command_line_takes_a_factory(factory: str, tmp_path, capsys) -> None:
    photo().save(tmp_path / "photo.png")
    options = ("--out", tmp_path / "out", "--size", 64, "--device", "cpu")
    code, _, err = call(capsys, "label", tmp_path / "photo.png", "--backbone", factory, *options)
    assert code == 0, err
    mask = PseudoLabeler(factory, 64, device="cpu")(photo()).mask
    written = Image.open(tmp_path / "out/photo.png").resize((8, 8), Image.Resampling.NEAREST)
    assert np.array_equal(np.asarray(written) > 0, mask.numpy())
    code, _, err = call(
        capsys, "label", tmp_path / "photo.png", "--backbone", "my_models:broken", *options
    )
    assert code == 2
    assert "'my_models:broken' raised OSError (no such file)" in err


def test_a_head_does_not_run_the_code_that_it_names(factory: str, tmp_path) -> None:
    save_head(tmp_path / "head", PatchHead(16), HeadInfo(factory))
    with pytest.raises(ValueError, match="is not run by itself"):
        Segmenter(tmp_path / "head", size=64)
    assert Segmenter(tmp_path / "head", factory, 64, device="cpu")(photo()).shape == (64, 80)


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (
            Net(),
            {},
            r"ModuleBackbone\(model, patch_size=..., mean=..., std=...\): .*Net says",
        ),
        (Net(), COLOURS, r"`patch_size` must be given .* ModuleBackbone\(model, patch_size=...\)"),
        (Net(), {"patch_size": 8}, "`mean` must be given .*Net says no mean and no std"),
        (Net(), {"patch_size": 0, **COLOURS}, "`patch_size` must be an integer >= 1: got 0"),
        (Net(), {**COLOURS, "patch_size": 16}, r"must return floats \(1, 196, d\).*\(1, 16, 28, "),
        (Net("tokens", 3), {**COLOURS, "patch_size": 8, "prefix_tokens": 1}, r"\(1, 199, 16\)"),
        (Net("tokens", 17), {**COLOURS, "patch_size": 8}, r"returned \(1, 213, 16\)"),
        (Net(), {**COLOURS, "patch_size": 8, "std": (1, 0, 1)}, "`std` must be three numbers > 0"),
        (Net(), {**COLOURS, "patch_size": 8, "mean": (0, 0, np.nan)}, "`mean` must be three numb"),
        (Net(), {**COLOURS, "patch_size": True}, "`patch_size` must be an integer >= 1"),
        (
            Net(),
            {**COLOURS, "patch_size": 8, "orient": "up"},
            "`orient` must be 'seed' or 'corners'",
        ),
        (Net(), {**COLOURS, "patch_size": 8, "dtype": "half"}, "`dtype` must be torch.bfloat16, "),
        (None, {**COLOURS, "patch_size": 8}, "`model` must be a module or a function of a batch"),
        (Net, {**COLOURS, "patch_size": 8}, "`model` must be a module or a function of a batch"),
        (print, {**COLOURS, "patch_size": 8}, "`name` must be a name, which a function does not"),
        (
            nn.Linear(3, 3),
            {**COLOURS, "patch_size": 8},
            "`dim` must be given for a model that",
        ),
    ],
)
def test_models_that_do_not_fit(model: nn.Module, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ModuleBackbone(model, **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [("features", "keys"), ("weights", "x.pth"), ("positions", "timm"), ("dtype", "bfloat16")],
)
def test_options_that_a_backbone_of_ones_own_does_not_have(option: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"`{option}`.* must be left alone with a backbone"):
        PseudoLabeler(load_backbone("classic"), 64, **{option: value})


def test_a_factory_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="'no_such_module:net' raised ModuleNotFoundError"):
        _ = PseudoLabeler("no_such_module:net").backbone


def test_a_factory_runs_once_and_its_device_counts(factory: str, monkeypatch) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    my_models = import_module("my_models")
    calls, made = [], my_models.net
    monkeypatch.setattr(my_models, "net", lambda: calls.append(1) or made())
    labeler = PseudoLabeler(factory, 64, device="cpu")
    assert not calls
    _ = labeler.settings, labeler(photo()), labeler.settings
    assert calls == [1]
    assert len(pickle.dumps(labeler)) < 2000  # by its name, without the weights
    monkeypatch.setattr(my_models, "net", lambda: load_backbone("classic"))
    with pytest.raises(ValueError, match="`device` and `dtype` must be left alone with a backbone"):
        _ = PseudoLabeler(factory, 64, device="cpu", dtype="bfloat16").backbone


def test_a_head_of_another_module_is_said_once(tmp_path: Path) -> None:
    trained, other = (ModuleBackbone(Net(), patch_size=8, **COLOURS) for _ in range(2))
    next(other.model.parameters()).data += 1
    info = HeadInfo(trained.name, settings=PseudoLabeler(trained, 64).settings)
    save_head(tmp_path / "head", PatchHead(16), info)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Segmenter(tmp_path / "head", trained, 64)(photo())
    segmenter = Segmenter(tmp_path / "head", other, 64)
    with pytest.warns(RuntimeWarning, match="of 'own:.*Net', and is used with") as caught:
        segmenter([photo()] * 9)  # more than one batch
    assert len(caught) == 1


def test_a_head_of_a_module_says_that_it_needs_one(tmp_path) -> None:
    segmenter = Segmenter(PatchHead(16), ModuleBackbone(Net(), patch_size=8, **COLOURS), 64)
    segmenter.save_pretrained(tmp_path / "head")
    with pytest.raises(ValueError, match=r"'own:.*Net', a backbone of one's own, which has no"):
        Segmenter(tmp_path / "head", size=64)
    assert "backbone=..." in (tmp_path / "head/README.md").read_text()
