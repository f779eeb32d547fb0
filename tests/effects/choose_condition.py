from __future__ import annotations

from typing import Any

from tests.effects import compare_conditions

STRENGTHS = compare_conditions.STRENGTHS


def null(seed: int) -> list[Any]:
    """Synthetic: 60 prompts under four settings, each of which breaks as many answers as it rescues."""
    return compare_conditions.null(seed)


def null_all_alike(seed: int) -> list[Any]:
    """Synthetic: 60 prompts under four settings that change nothing at all."""
    return compare_conditions.null_all_alike(seed)


def planted(strength: float, seed: int) -> list[Any]:
    """One of four settings turns this share of the wrong answers right, the others one in thirty."""
    return compare_conditions.planted(strength, seed)
