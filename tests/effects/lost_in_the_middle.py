from __future__ import annotations

from typing import Any

from tests.effects.position_bias import grid

STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def null(seed: int) -> list[Any]:
    """Synthetic: 12 prompts at each of five places and three lengths, right with a chance that falls with length and is
    the same at every place."""
    return grid({256: (0.95,) * 5, 512: (0.5,) * 5, 1024: (0.2,) * 5}, seed)


def null_recency(seed: int) -> list[Any]:
    """Synthetic: the same prompts, right with a chance that rises from the first place to the last: no U."""
    return grid({256: (0.95,) * 5, 512: (0.2, 0.3, 0.45, 0.7, 0.95), 1024: (0.1, 0.1, 0.2, 0.4, 0.8)}, seed)


def planted(strength: float, seed: int) -> list[Any]:
    """At 512 and 1,024 tokens the middle place loses this share of the answers that the ends keep (95 %), and the
    places beside it half of that share."""
    profile = tuple(0.95 * (1 - strength * weight) for weight in (0, 0.5, 1, 0.5, 0))
    return grid({256: (0.95,) * 5, 512: profile, 1024: profile}, seed)
