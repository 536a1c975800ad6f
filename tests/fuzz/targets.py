"""The targets of fuzzing: seed inputs, and a check that must pass for any bytes."""

# ruff: noqa: PT017 - what must hold for an error, if there is one
from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
import sys
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from mutators import mutate_checkpoint
from PIL import Image
from safetensors.torch import save

from selfment.backbones import WeightsError, load_backbone
from selfment.experiments.recipes import Recipe, RecipeError, packaged, read_recipe
from selfment.images.load import ImageError, load_image
from selfment.jobs.records import Records
from selfment.models.head import CONFIG_NAME, WEIGHTS_NAME, PatchHead, load_head
from selfment.training.cache import TensorCache
from selfment.util.lines import with_checksum

Image.init()  # all plugins
Image.MAX_IMAGE_PIXELS = 1 << 19  # larger images are tested without a fuzzer

_FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
_DIM = 3
_VITS = ("test_vit", "eva02_tiny_patch14_224")  # one of each of timm's two classes
_SHAPE = {"img_size": 8, "patch_size": 4, "embed_dim": 4}
_SHAPE |= {"depth": 1, "num_heads": 1, "mlp_ratio": 1}
_KEY = "0123456789abcdef"
_FORBIDDEN = ("os.exec", "os.posix_spawn", "os.system", "socket.connect", "subprocess.Popen")


@dataclass(frozen=True)
class Target:
    """A reader with its seed inputs and checks."""

    seeds: Callable[[], Iterator[bytes]]
    check: Callable[[bytes], None]  # raises an error that the reader must not raise
    mutate: Callable[[bytes, int, int], bytes] | None = None  # data, most bytes, random seed


def remove_files() -> None:
    shutil.rmtree(_FOLDER, ignore_errors=True)


def forbid_side_effects() -> None:
    """Makes starting a program and connecting an error, because no reader may do so."""

    def refuse(event: str, arguments: Any) -> None:
        if event in _FORBIDDEN:
            raise AssertionError(f"{event} {arguments!r:.200}")

    sys.addaudithook(refuse)


def _file(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _pictures() -> Iterator[bytes]:
    levels = np.random.RandomState(0).randint(0, 256, (12, 9, 4)).astype(np.uint8)
    colour = Image.fromarray(levels[..., :3])
    pictures = {
        "RGB": colour,
        "RGBA": Image.fromarray(levels),
        "L": Image.fromarray(levels[..., 0]),
        "P": colour.quantize(16),
        "1": colour.convert("1"),
        "I;16": Image.fromarray(levels[..., 0].astype(np.uint16) * 257),
        "F": Image.fromarray(levels[..., 0].astype(np.float32)),
        "CMYK": colour.convert("CMYK"),
    }
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in sorted(Image.SAVE):
        for picture in pictures.values():
            for options in ({}, {"exif": exif}, {"save_all": True, "append_images": [picture]}):
                stream = io.BytesIO()
                # Not every format supports every mode and option.
                with contextlib.suppress(Exception):
                    picture.save(stream, kind, **options)
                    yield stream.getvalue()


def _check_image(data: bytes) -> None:
    try:
        image, notes = load_image(_file("image.png", data))
    except ImageError as error:
        assert "image.png" in str(error)
        return
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= 2 * (Image.MAX_IMAGE_PIXELS or 0)
    assert all(isinstance(note, str) for note in notes)


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return PatchHead(_DIM).state_dict()


def _as_torch(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def _checkpoints() -> Iterator[bytes]:
    state = _state()
    yield _as_torch({"weight": torch.ones(2)})
    yield _as_torch({"weight": torch.ones(2)}, _use_new_zipfile_serialization=False)
    for content in (
        state,
        {"module." + name: tensor.half() for name, tensor in state.items()},
        {"model_state": state, "info": {"backbone": "classic", "size": 96}, "epoch": 1},
        {"model_state": state, "args": Namespace(lr=1e-3, path=Path("x"))},
    ):
        yield _as_torch(content)


def _check_head(name: str) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        path = _file(name, data)
        try:
            head, _ = load_head(path if path.parent == _FOLDER else path.parent)
        except WeightsError as error:
            assert str(error).startswith("`head` must ")
            return
        assert isinstance(head, PatchHead)

    return check


def _safe_checkpoints() -> Iterator[bytes]:
    yield save(_state())
    yield save({name: tensor.bfloat16() for name, tensor in _state().items()}, {"format": "pt"})
    yield save({"weight": torch.ones(2)})


def _configs() -> Iterator[bytes]:
    _file(f"head/{WEIGHTS_NAME}", save(_state()))
    config = {"backbone": "classic", "features": "tokens", "size": 96, "settings": {"tau": 0.2}}
    yield json.dumps(config).encode()
    yield b"{}"


def _states() -> list[dict[str, torch.Tensor]]:
    """Returns complete weights of the backbones."""
    torch.manual_seed(0)
    models = [timm.create_model(name, num_classes=0) for name in _VITS]
    return [dict(model.state_dict()) for model in models]


def _weights() -> Iterator[bytes]:
    for state in _states():
        yield save(state)
        yield _as_torch(state)
        yield _as_torch({"state_dict": state, "args": Namespace(lr=1e-3)})
        yield _as_torch({"model": state}, _use_new_zipfile_serialization=False)
        # Positions and patches of other sizes are resampled.
        resized = {"pos_embed": torch.zeros(1, 10, 4), "patch_embed.proj.weight": torch.ones(4, 48)}
        yield _as_torch({**state, **resized})


def _check_weights(data: bytes) -> None:
    path = _file("weights.pth" if data[:1] in (b"P", b"\x80") else "weights.safetensors", data)
    for name in _VITS:
        try:
            backbone = load_backbone(name, weights=path)
        except WeightsError as error:
            assert str(error).startswith("`weights` must be a checkpoint ")
            if "can read" in str(error):
                return
            continue
        assert backbone(torch.zeros(1, 3, 8, 8)).shape == (1, 4, _SHAPE["embed_dim"])


def _tensors() -> Iterator[bytes]:
    for tensor in (torch.ones(2, 3), torch.arange(5) > 2, torch.ones(4).bfloat16()):
        _cache().put(_KEY, tensor)
        yield (_FOLDER / "cache" / _KEY[:2] / f"{_KEY}.safetensors").read_bytes()


def _cache() -> TensorCache:
    return TensorCache(_FOLDER / "cache")


def _check_cache(data: bytes) -> None:
    _file(f"cache/{_KEY[:2]}/{_KEY}.safetensors", data)
    found = _cache().get(_KEY)
    assert found is None or found.clone().shape == found.shape


def _lines() -> Iterator[bytes]:
    record = {"image": "/a\nb.png", "name": "a.png", "error": None, "time": 1.5, "bytes": 7}
    whole = with_checksum(json.dumps(record)) + "\n"
    yield whole.encode()
    yield (whole + whole.replace("a.png", "c.png") + whole[:30]).encode()
    yield (json.dumps(record) + "\n").encode()
    for name in ("../a.png", "/a.png", 3):
        yield (with_checksum(json.dumps({**record, "name": name})) + "\n").encode()


def _check_records(data: bytes) -> None:
    path = _file("labels.jsonl", data)
    try:
        records = Records(path, "name")
    except ValueError as error:
        assert str(error).startswith("`out` must hold no file")
        return
    before = {image: records.get(image) for image in records._lines}
    for image, record in before.items():
        assert record["image"] == image
        name = record.get("name")
        assert name is None or ".." not in name.split("/")
    records.add({"image": "x", "name": "x.png"})
    records.close()
    records = Records(path, "name")
    records.close()
    assert {**before, "x": records.get("x")} == {i: records.get(i) for i in records._lines}


def _recipes() -> Iterator[bytes]:
    folder = Path(sys.modules["selfment"].__path__[0]) / "experiments/recipe_files"
    for recipe in packaged():
        yield (folder / f"{recipe.name}.toml").read_bytes()


def _check_recipe(data: bytes) -> None:
    try:
        recipe = read_recipe(_file("recipe.toml", data))
    except RecipeError as error:
        assert "recipe.toml" in str(error)
        return
    assert isinstance(recipe, Recipe)


TARGETS = {
    "images": Target(_pictures, _check_image),
    "heads": Target(_checkpoints, _check_head("head.pt"), mutate_checkpoint),
    "safetensors": Target(_safe_checkpoints, _check_head("head.safetensors"), mutate_checkpoint),
    "configs": Target(_configs, _check_head(f"head/{CONFIG_NAME}")),
    "weights": Target(_weights, _check_weights, mutate_checkpoint),
    "cache": Target(_tensors, _check_cache),
    "records": Target(_lines, _check_records),
    "recipes": Target(_recipes, _check_recipe),
}

# The loader creates a model for each input: make it small, and look up its name only once.
timm.create_model = functools.partial(timm.create_model, **_SHAPE)
timm.list_pretrained = functools.cache(timm.list_pretrained)
warnings.simplefilter("ignore")
