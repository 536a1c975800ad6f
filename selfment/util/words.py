"""Words of sentences."""

from __future__ import annotations


def count_of(number: int, noun: str) -> str:
    """Returns a number and its noun: "1 image", "2,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
