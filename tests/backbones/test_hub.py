"""Without a network the hub's cache is used at once, and what is missing is an error at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from selfment import Segmenter
from selfment.backbones import WeightsError, load_backbone
from selfment.backbones.hub import without_retries

constants = pytest.importorskip("huggingface_hub").constants


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")  # a name that never exists


LOADS: dict[str, Callable[[], object]] = {
    "timm": lambda: load_backbone("vit_small_patch16_dinov3.lvd1689m"),
    "transformers": lambda: load_backbone("hf:owner/model"),
    "head": lambda: Segmenter.from_pretrained("owner/head"),
}


@pytest.mark.parametrize("model", LOADS)
def test_a_hub_without_an_address_is_asked_once(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model == "transformers":
        pytest.importorskip("transformers")
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    with pytest.raises(WeightsError, match=r"cannot be (down)?loaded"):
        LOADS[model]()
    assert naps == []


@pytest.mark.parametrize(
    ("endpoint", "proxy", "expected"),
    [
        ("https://hub.invalid", None, True),
        ("http://localhost:8080", None, False),
        ("https://hub.invalid", "http://proxy.invalid:3128", False),
    ],
)
def test_offline_mode_is_set_inside_the_block_alone(
    endpoint: str, proxy: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    if proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
    with without_retries():
        assert constants.HF_HUB_OFFLINE is expected
    assert constants.HF_HUB_OFFLINE is False
    with pytest.raises(KeyError), without_retries():
        raise KeyError
    assert constants.HF_HUB_OFFLINE is False
