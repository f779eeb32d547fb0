"""Position interpolation: all positions divided by one factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from probe.hooks.attention.change_of_positions import RescaledPositions
from probe.hooks.attention.rotation import Rotation
from probe.hooks.attention.turner import Turner


@dataclass(frozen=True)
class interpolate_positions(RescaledPositions):
    """Squeeze the prompt's positions into the trained range: `with interpolate_positions(4)(model):`.

    Position m becomes m / factor. Chen et al. (2023, arXiv 2306.15595, section 3.2), without their fine-tuning. On a
    model whose rotary positions are scaled already it divides the positions, whatever their frequencies are: a factor
    f makes of linear scaling by s one by f · s. Dynamic NTK scaling and LongRoPE are refused, and a model without
    rotary positions.
    """

    factor: float | Literal["auto"] = "auto"
    """By what positions are divided, at least 1; `auto` is the prompt's length over the training length (the paper's
    L′ / L), and stays what it is while an answer is decoded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_factor("factor", self.factor)

    def wanted(self) -> tuple[str, float | Literal["auto", "dynamic"]]:
        """See `RescaledPositions.wanted`."""
        return "factor", self.factor

    def turner(self, rotation: Rotation, factor: float, training_length: int | None) -> Turner:
        """See `RescaledPositions.turner`."""
        slower = rotation.inverse_frequency / factor
        return Turner(rotation, lambda position: position[:, None] * slower)
