"""YaRN: slow rotary pairs interpolated, fast ones left, logits a little sharper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from probe.errors import UsageError
from probe.hooks.attention.change_of_positions import RescaledPositions, one_base
from probe.hooks.attention.rotation import Rotation
from probe.hooks.attention.turner import Turner


@dataclass(frozen=True)
class yarn(RescaledPositions):
    """Interpolate by wavelength, and sharpen: `with yarn(8)(model):`.

    Pairs that turn more than `beta_fast` times over the training length keep their frequency, those that turn less than
    `beta_slow` times have it divided by the factor s, those between in part, along a ramp over the pairs; cosine and
    sine are multiplied by 0.1 ln s + 1, queries and keys alike, so that logits grow by its square. Peng et al. (2023,
    arXiv 2309.00071, section 3, and their code, which rounds the ramp's ends down and up), without their fine-tuning.

    A model whose frequencies are not those of one base (linear, YaRN, Llama 3 scaling) is refused, as is one without
    rotary positions.
    """

    factor: float | Literal["auto"] = "auto"
    """The scale s, at least 1; `auto` is the prompt's length over the training length."""
    beta_fast: float = 32.0
    """Turns over the training length from which on a pair is left as it is; the authors' for Llama."""
    beta_slow: float = 1.0
    """Turns over the training length up to which a pair is interpolated whole; the authors' for Llama."""
    attention_factor: float | None = None
    """What cosine and sine are multiplied by; None for the authors' 0.1 ln s + 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_factor("factor", self.factor)
        if not 0 < self.beta_slow <= self.beta_fast:
            raise UsageError(
                f"yarn: beta_slow lies above 0 and not above beta_fast, not {self.beta_slow} of {self.beta_fast}"
            )
        if self.attention_factor is not None and self.attention_factor <= 0:
            raise UsageError(f"yarn: attention_factor lies above 0, not {self.attention_factor}")

    def wanted(self) -> tuple[str, float | Literal["auto", "dynamic"]]:
        """See `RescaledPositions.wanted`."""
        return "factor", self.factor

    def needs_training_length(self) -> bool:
        """Turns are counted over the training length, whatever the factor."""
        return True

    def turner(self, rotation: Rotation, factor: float, training_length: int | None) -> Turner:
        """See `RescaledPositions.turner`."""
        assert training_length is not None
        base, count = one_base(rotation, "yarn"), len(rotation.inverse_frequency)

        def pair_that_turns(times: float) -> float:
            return count * math.log(training_length / (times * 2 * math.pi)) / math.log(base)

        low = max(math.floor(pair_that_turns(self.beta_fast)), 0)
        high = min(math.ceil(pair_that_turns(self.beta_slow)), 2 * count - 1)
        # The authors' ramp is one pair's step where both ends are the same.
        width = high - low if high != low else 1e-3
        interpolated = ((torch.arange(count, dtype=torch.float64) - low) / width).clamp(0, 1)
        slower = rotation.inverse_frequency * (1 - interpolated + interpolated / factor)
        sharper = 0.1 * math.log(factor) + 1 if self.attention_factor is None else self.attention_factor
        return Turner(rotation, lambda position: position[:, None] * slower, sharper)
