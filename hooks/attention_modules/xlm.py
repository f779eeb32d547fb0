"""XLM's attention, causal where its model was configured so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from probe.errors import NotReproducible
from probe.hooks.attention.module import AttentionModule, own_attention_facts


class xlm(AttentionModule):
    """XLM: scaled queries; a mask of padding alone, or, where it is causal, one for every query."""

    classes: ClassVar[tuple[str, ...]] = ("transformers.models.xlm.modeling_xlm.MultiHeadAttention",)

    def facts(self, module: nn.Module, given: Mapping[str, Any]) -> own_attention_facts:
        """Read the facts off the module's arguments."""
        if given.get("kv") is not None:
            raise NotReproducible(f"{type(module).__name__}: its attention over an encoder is not understood")
        mask = given["mask"]
        causal = mask.ndim == 3
        return own_attention_facts(
            scale=1.0,
            mask=(mask != 0)[:, None] if causal else (mask != 0)[:, None, None],
            mask_shows="all" if causal else "padding",
            causal=causal,
        )
