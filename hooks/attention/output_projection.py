"""The projection that the heads' outputs go through on their way to the residual stream."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# What transformers' models call it.
_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo", "proj")


def output_projection(attention: nn.Module, width: int) -> nn.Module | None:
    """Return the module inside an attention module that takes all heads' outputs, `width` channels; None for none."""
    for name in _NAMES:
        found: Any = getattr(attention, name, None)
        # A bridge's component stands in the place of what it wraps.
        found = getattr(found, "original_component", found)
        if _is_plain(found):
            if _plain_weight(found).shape[0] == width:
                return found  # type: ignore[no-any-return]
        elif isinstance(found, nn.Module) and getattr(found, "in_features", None) == width:
            return found
    return None


def projection_weight(
    projection: nn.Module, width: int, like: Tensor
) -> Float[Tensor, "head_channel residual_channel"]:
    """Return the matrix of what `output_projection` found; one that is no plain layer is asked for it."""
    if _is_plain(projection):
        return _plain_weight(projection)
    # Quantised, offloaded, or with an adapter: what it does to the unit vectors is its matrix.
    unit = torch.eye(width, dtype=like.dtype, device=like.device)
    columns: Tensor = projection(unit) - projection(torch.zeros_like(unit[:1]))
    return columns


def _is_plain(found: Any) -> bool:
    return type(found) in (nn.Linear, Conv1D) and type(found.weight) is nn.Parameter and not found.weight.is_meta


def _plain_weight(found: Any) -> Tensor:
    weight: Tensor = found.weight.T if isinstance(found, nn.Linear) else found.weight
    return weight
