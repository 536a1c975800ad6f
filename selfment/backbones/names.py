"""Names of the embedded backbones, and the names of timm's models on other hubs."""

from __future__ import annotations

#: The hand-made backbones: they need no weights, and have no options.
EMBEDDED = ("classic", "statistics")

_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}
_DINOV2 = ("dinov2", "reg4_dinov2")
_DINOV3 = {
    "vits16": "vit_small_patch16_dinov3",
    "vits16plus": "vit_small_plus_patch16_dinov3",
    "vitb16": "vit_base_patch16_dinov3",
    "vitl16": "vit_large_patch16_dinov3",
    "vith16plus": "vit_huge_plus_patch16_dinov3",
    "vit7b16": "vit_7b_patch16_dinov3",
}


def _table() -> dict[str, str]:
    """Maps names on torch hub and the Hugging Face hub to timm's names."""
    table = {}
    for letter, size in _SIZES.items():
        for patch in (8, 16):
            if letter in "sb":
                for name in (f"dino_vit{letter}{patch}", f"facebook/dino-vit{letter}{patch}"):
                    table[name] = f"vit_{size}_patch{patch}_224.dino"
        plain, registers = (f"vit_{size}_patch14_{kind}.lvd142m" for kind in _DINOV2)
        table |= {f"dinov2_vit{letter}14": plain, f"facebook/dinov2-{size}": plain}
        table[f"dinov2_vit{letter}14_reg"] = registers
        table[f"facebook/dinov2-with-registers-{size}"] = registers
    for model, name in _DINOV3.items():
        table[f"dinov3_{model}"] = f"{name}.lvd1689m"
        for data in ("lvd1689m", *(["sat493m"] if model in ("vitl16", "vit7b16") else [])):
            table[f"facebook/dinov3-{model}-pretrain-{data}"] = f"{name}.{data}"
    return table


_TABLE = _table()


def timm_name(name: str) -> str | None:
    """Returns timm's name of a model of torch hub or the Hugging Face hub; None if unknown.

    ``dinov2_vits14``, ``facebook/dinov2-small`` and ``timm/vit_small_patch14_dinov2.lvd142m`` are
    ``vit_small_patch14_dinov2.lvd142m``.
    """
    for prefix in ("hf_hub:", "hf-hub:"):
        name = name.removeprefix(prefix)
    return name.removeprefix("timm/") if name.startswith("timm/") else _TABLE.get(name.lower())
