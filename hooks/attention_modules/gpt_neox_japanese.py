"""GPT-NeoX Japanese's attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from probe.hooks.attention.module import AttentionModule, own_attention_facts


class gpt_neox_japanese(AttentionModule):
    """GPT-NeoX Japanese: partial rotation, the scale inside the product."""

    classes: ClassVar[tuple[str, ...]] = (
        "transformers.models.gpt_neox_japanese.modeling_gpt_neox_japanese.GPTNeoXJapaneseAttention",
    )

    def facts(self, module: nn.Module, given: Mapping[str, Any]) -> own_attention_facts:
        """Read the facts off the module."""
        of: Any = module
        return own_attention_facts(scale=1 / of.norm_factor, mask=given.get("attention_mask"))
