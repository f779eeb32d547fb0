"""A norm as the linear map that it is once its scale is frozen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.errors import NotReproducible

_LARGE = 64.0
"""Size of the vectors a norm is tried with: a power of two, beside which what it adds to a variance is nothing."""


@dataclass(frozen=True, eq=False)
class frozen_norm:
    """y = scale · gain ∘ (x, less its mean where `centred`) + bias; the scale alone depends on x."""

    gain: Float[Tensor, "channel"]
    """Gain of each channel."""
    bias: Float[Tensor, "channel"]
    """What is added to each channel."""
    centred: bool
    """Whether the mean is taken off (LayerNorm) or not (RMSNorm)."""

    @classmethod
    @torch.no_grad()
    def of(cls, module: nn.Module, like: Float[Tensor, "channel"]) -> frozen_norm:
        """Find out what a norm does to vectors like `like`; raises `NotReproducible` where it is of another form."""
        sign = torch.ones_like(like)
        plus, minus = (_applied(module, sign * size) for size in (_LARGE, -_LARGE))
        centred = bool((plus == minus).all())
        if centred:
            if len(sign) % 2:
                raise NotReproducible("a norm that takes off the mean, over an odd number of channels")
            sign[1::2] = -1
            plus, minus = (_applied(module, sign * size) for size in (_LARGE, -_LARGE))
        return cls((plus - minus) / 2 * sign.to(plus), (plus + minus) / 2, centred)

    def seen_from_before(self, direction: Float[Tensor, "row channel"]) -> Float[Tensor, "row channel"]:
        """Return what a direction in the output is in the input, but for the scale."""
        before = direction * self.gain.to(direction)
        return before - before.mean(-1, keepdim=True) if self.centred else before

    def scale(self, x: Float[Tensor, "channel"], y: Float[Tensor, "channel"]) -> float:
        """Return the scale with which the norm made y from x; raises `NotReproducible` where no one scale does."""
        # Norms compute in float32 whatever the model's dtype.
        eps = max(torch.finfo(y.dtype).eps, torch.finfo(torch.float32).eps)
        x, y = x.to(self.gain), y.to(self.gain)
        without = (x - x.mean() if self.centred else x) * self.gain
        moved = y - self.bias
        total = float(without.square().sum())
        scale = float((without * moved).sum()) / total if total else 0.0
        allowed = 8 * eps * (moved.abs() + self.bias.abs() + (scale * self.gain * x).abs())
        if bool(((moved - scale * without).abs() > allowed + 8 * eps * float(moved.square().mean().sqrt())).any()):
            raise NotReproducible("a norm that is not a gain times its input, scaled")
        return scale


def _applied(module: nn.Module, vector: Tensor) -> Tensor:
    output: Tensor = module(vector[None, None])[0, 0]
    return output.to(torch.float64 if output.dtype == torch.float64 else torch.float32)
