"""The first GPT's attention, which is causal by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from probe.hooks.attention.module import AttentionModule, own_attention_facts


class openai_gpt(AttentionModule):
    """GPT of 2018: keys after the query are hidden by the module, padding by its mask."""

    classes: ClassVar[tuple[str, ...]] = ("transformers.models.openai.modeling_openai.Attention",)

    def facts(self, module: nn.Module, given: Mapping[str, Any]) -> own_attention_facts:
        """Read the facts off the module."""
        of: Any = module
        scale = 1 / math.sqrt(of.split_size // of.n_head) if of.scale else 1.0
        return own_attention_facts(scale=scale, mask=given.get("attention_mask"), mask_shows="padding")
