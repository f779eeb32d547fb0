"""Turns the queries and keys of calls to where other angles would have put them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from probe.hooks.attention.rotation import Rotation, cosine_and_sine

_MARGIN = 256

Angles = Callable[[Float[Tensor, "token"]], Float[Tensor, "token rope_pair"]]
"""Takes positions in float64; returns the radians that tokens there shall be turned by."""


class Turner:
    """Turns vectors from the angles that the model gave their positions to those of `angles`.

    Cosines and sines are made once for each position, for all layers and forwards that share the object: two numbers a
    pair of channels and position.
    """

    def __init__(self, rotation: Rotation, angles: Angles, factor: float = 1.0) -> None:
        """`factor` multiplies cosine and sine, so that only channels that turn grow by it."""
        self._rotation, self._angles, self._factor = rotation, angles, factor
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, vectors: Float[Tensor, "head token channel"], start: int) -> Float[Tensor, "head token channel"]:
        """Return queries or keys of consecutive positions from `start` on, turned; in float32 (float64 for float64)."""
        stop = start + vectors.shape[1]
        cosine, sine = self._up_to(stop, vectors)
        return self._rotation.turned_by(vectors, cosine[start:stop], sine[start:stop])

    def _up_to(self, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
        kind = like.device, like.dtype if like.dtype == torch.float64 else torch.float32
        known = self._tables.get(kind)
        there = 0 if known is None else len(known[0])
        if known is not None and there >= stop:
            return known
        # With a margin, so that decoding does not make a new table for every token.
        position = torch.arange(there, stop + _MARGIN, dtype=torch.float64)
        further = self._angles(position) - position[:, None] * self._rotation.inverse_frequency
        more = [each * self._factor for each in cosine_and_sine(further, like)]
        cosine, sine = more if known is None else (torch.cat(pair) for pair in zip(known, more, strict=True))
        self._tables[kind] = cosine, sine
        return cosine, sine


def turners(of_layer: Mapping[int, Rotation], moved: Callable[[Tensor], Tensor]) -> dict[int, Turner]:
    """Return what turns each layer's queries or keys from positions [token] to where `moved` says that they stand.

    Layers that turn alike share one.
    """
    made: dict[Rotation, Turner] = {}
    for rotation in of_layer.values():
        if rotation not in made:
            made[rotation] = Turner(rotation, _angles(rotation, moved))
    return {layer: made[rotation] for layer, rotation in of_layer.items()}


def _angles(rotation: Rotation, moved: Callable[[Tensor], Tensor]) -> Angles:
    return lambda position: moved(position)[:, None] * rotation.inverse_frequency
