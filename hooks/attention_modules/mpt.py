"""MPT's attention, with ALiBi by distance from the last position that it was configured for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.hooks.attention.module import AttentionModule, own_attention_facts


class mpt(AttentionModule):
    """MPT: ALiBi with slopes of its own where the number of heads is no power of two."""

    classes: ClassVar[tuple[str, ...]] = ("transformers.models.mpt.modeling_mpt.MptAttention",)

    def facts(self, module: nn.Module, given: Mapping[str, Any]) -> own_attention_facts:
        """Read the facts off the module; the bias of the first keys is that of any others, but for a constant."""
        of: Any = module
        bias = given.get("position_bias")
        return own_attention_facts(
            scale=of.softmax_scale,
            mask=given.get("attention_mask"),
            mask_hides=True,
            alibi_slope=None if bias is None else _slopes(bias),
            key_bias=None if bias is None else bias.transpose(0, 1),
        )


def _slopes(bias: Float[Tensor, "head 1 key"]) -> Float[Tensor, "head"]:
    """The slopes of a bias that rises to 0 at the last key: what it adds there less than one key before."""
    if bias.shape[-1] == 1:
        return torch.zeros(bias.shape[0], dtype=torch.float64, device=bias.device)
    return (bias[:, 0, -1] - bias[:, 0, -2]).double()
