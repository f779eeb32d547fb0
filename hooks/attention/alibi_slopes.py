"""The slopes of ALiBi for any number of heads."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def alibi_slopes(num_heads: int) -> Float[Tensor, "head"]:
    """Slopes 2^(−8i/n) for n heads, i from 1, and where n is no power of two those of the next power below, followed
    by every other of the next above; in float64 (Press et al. 2022, arXiv 2108.12409, the authors' code).
    """
    below = 1 << (num_heads.bit_length() - 1)
    first = _of_power_of_two(below)
    return torch.cat([first, _of_power_of_two(2 * below)[::2][: num_heads - below]])


def _of_power_of_two(num_heads: int) -> Float[Tensor, "head"]:
    return 2.0 ** (-8.0 * torch.arange(1, num_heads + 1, dtype=torch.float64) / num_heads)
