"""Falcon's attention, of all three head layouts, with rotation or ALiBi."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from probe.hooks.attention.alibi_slopes import alibi_slopes
from probe.hooks.attention.module import AttentionModule, own_attention_facts


class falcon(AttentionModule):
    """Falcon: one key-value head, one for each head, or groups that it repeats before it caches them."""

    classes: ClassVar[tuple[str, ...]] = ("transformers.models.falcon.modeling_falcon.FalconAttention",)

    def facts(self, module: nn.Module, given: Mapping[str, Any]) -> own_attention_facts:
        """Read the facts off the module.

        Its model lays ALiBi over the mask, for SDPA's sake; eager attention adds it to the scores once more.
        """
        of: Any = module
        mask, alibi = given.get("attention_mask"), given.get("alibi")
        facts = own_attention_facts(
            scale=of.inv_norm_factor,
            mask=mask,
            num_repeats=of.num_heads // of.num_kv_heads if of.new_decoder_architecture else 1,
        )
        if alibi is None:
            return facts
        fused = of.config._attn_implementation.endswith("sdpa") and not given.get("output_attentions")
        in_mask = alibi.view(-1, of.num_heads, alibi.shape[-1]) / math.sqrt(of.head_dim)
        times = 1 if fused else 2
        return replace(
            facts,
            mask_bias=in_mask,
            alibi_slope=times * of.inv_norm_factor * alibi_slopes(of.num_heads).to(alibi.device),
            # Its scores are float32, so that a bias that was rounded to less shows.
            key_bias=times * in_mask.float(),
        )
