"""Bloom's attention, with ALiBi inside its product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from probe.hooks.attention.alibi_slopes import alibi_slopes
from probe.hooks.attention.module import AttentionModule, own_attention_facts


class bloom(AttentionModule):
    """Bloom: ALiBi by key position, added before the mask."""

    classes: ClassVar[tuple[str, ...]] = ("transformers.models.bloom.modeling_bloom.BloomAttention",)

    def facts(self, module: nn.Module, given: Mapping[str, Any]) -> own_attention_facts:
        """Read the facts off the module."""
        of: Any = module
        alibi = given["alibi"]
        return own_attention_facts(
            scale=of.inv_norm_factor,
            mask=given.get("attention_mask"),
            alibi_slope=alibi_slopes(of.num_heads).to(alibi.device),
            key_bias=of.beta * alibi.view(-1, of.num_heads, alibi.shape[-1]),
        )
