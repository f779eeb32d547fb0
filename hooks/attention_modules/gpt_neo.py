"""GPT-Neo's attention, which hides what is outside its window by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from probe.hooks.attention.module import AttentionModule, own_attention_facts


class gpt_neo(AttentionModule):
    """GPT-Neo: unscaled products; every other layer sees a window, which its mask does not show."""

    classes: ClassVar[tuple[str, ...]] = ("transformers.models.gpt_neo.modeling_gpt_neo.GPTNeoSelfAttention",)

    def facts(self, module: nn.Module, given: Mapping[str, Any]) -> own_attention_facts:
        """Read the facts off the module."""
        of: Any = module
        window = int(of.config.window_size) if of.attention_type == "local" else None
        return own_attention_facts(scale=1.0, mask=given.get("attention_mask"), mask_shows="causal", window=window)
