"""NTK-aware scaling: another base of the rotary frequencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from probe.hooks.attention.change_of_positions import RescaledPositions, one_base
from probe.hooks.attention.rotation import Rotation
from probe.hooks.attention.turner import Turner


@dataclass(frozen=True)
class ntk_scaling(RescaledPositions):
    """Slow the slow rotary pairs and leave the fast ones: `with ntk_scaling(8)(model):`.

    The base b becomes b · alpha^(D / (D − 2)), D the channels that turn: the slowest pair is interpolated by alpha, the
    fastest not at all. The NTK-aware and "dynamic NTK" forms as given in Peng et al. (2023, arXiv 2309.00071, section
    3.1 and appendix B) and in their repository: with `dynamic`, alpha is a · s − (a − 1) for s the length over the
    training length. Where a cache holds keys, all of them are turned to the alpha of the moment, while transformers'
    dynamic scaling leaves them as their own forward had them.

    A model whose frequencies are not those of one base (linear, YaRN, Llama 3 scaling) is refused, as is one without
    rotary positions.
    """

    alpha: float | Literal["auto"] = "auto"
    """What the slowest pair's positions are divided by, at least 1; `auto` is the prompt's length over the training
    length. With `dynamic` it is the number a, and `auto` is 1."""
    dynamic: bool = False
    """Whether alpha grows with the length so far, and is 1 up to the training length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_factor("alpha", self.alpha)

    def wanted(self) -> tuple[str, float | Literal["auto", "dynamic"]]:
        """See `RescaledPositions.wanted`."""
        return ("dynamic", "dynamic") if self.dynamic else ("alpha", self.alpha)

    def turner(self, rotation: Rotation, factor: float, training_length: int | None) -> Turner:
        """See `RescaledPositions.turner`."""
        one_base(rotation, "ntk_scaling")
        if self.dynamic and self.alpha != "auto":
            factor = self.alpha * factor - (self.alpha - 1)
        pair = torch.arange(len(rotation.inverse_frequency), dtype=torch.float64)
        slower = rotation.inverse_frequency * factor ** (-pair / (len(pair) - 1))
        return Turner(rotation, lambda position: position[:, None] * slower)
