"""GPT-J's attention, and CodeGen's after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from probe.hooks.attention.module import AttentionModule, own_attention_facts


class gptj(AttentionModule):
    """GPT-J and CodeGen: partial rotation, the product in float32, one mask."""

    classes: ClassVar[tuple[str, ...]] = (
        "transformers.models.gptj.modeling_gptj.GPTJAttention",
        "transformers.models.codegen.modeling_codegen.CodeGenAttention",
    )

    def facts(self, module: nn.Module, given: Mapping[str, Any]) -> own_attention_facts:
        """Read the facts off the module."""
        of: Any = module
        return own_attention_facts(scale=1 / of.scale_attn, mask=given.get("attention_mask"))
