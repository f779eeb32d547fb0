"""The attention of BART's descendants that write it out, with queries that are scaled before the product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from probe.errors import NotReproducible
from probe.hooks.attention.module import AttentionModule, own_attention_facts


class bart_family(AttentionModule):
    """XGLM, TrOCR and MVP. A call's queries are the scaled ones, since no others meet the keys."""

    classes: ClassVar[tuple[str, ...]] = (
        "transformers.models.mvp.modeling_mvp.MvpAttention",
        "transformers.models.trocr.modeling_trocr.TrOCRAttention",
        "transformers.models.xglm.modeling_xglm.XGLMAttention",
    )

    def facts(self, module: nn.Module, given: Mapping[str, Any]) -> own_attention_facts:
        """Read the facts off the module; as a decoder it is causal."""
        for name, what in (("key_value_states", "attention over an encoder"), ("attn_prompt", "learned prompt")):
            if given.get(name) is not None:
                raise NotReproducible(f"{type(module).__name__}: its {what} is not understood")
        of: Any = module
        return own_attention_facts(scale=1.0, mask=given.get("attention_mask"), causal=bool(of.is_decoder))
