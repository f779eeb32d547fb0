"""The attention of BERT's descendants that write it out: queries and keys of one width, and a mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from probe.errors import NotReproducible
from probe.hooks.attention.module import AttentionModule, own_attention_facts


class bert_family(AttentionModule):
    """Megatron-BERT, RemBERT, RoFormer, BigBird without its block-sparse attention, and GIT's text."""

    classes: ClassVar[tuple[str, ...]] = (
        "transformers.models.big_bird.modeling_big_bird.BigBirdSelfAttention",
        "transformers.models.git.modeling_git.GitSelfAttention",
        "transformers.models.megatron_bert.modeling_megatron_bert.MegatronBertSelfAttention",
        "transformers.models.rembert.modeling_rembert.RemBertSelfAttention",
        "transformers.models.roformer.modeling_roformer.RoFormerSelfAttention",
    )

    def facts(self, module: nn.Module, given: Mapping[str, Any]) -> own_attention_facts:
        """Read the facts off the module; as a decoder it is causal."""
        of: Any = module
        if given.get("encoder_hidden_states") is not None:
            raise NotReproducible(f"{type(module).__name__}: its attention over an encoder is not understood")
        return own_attention_facts(
            scale=1 / math.sqrt(of.attention_head_size),
            mask=given.get("attention_mask"),
            causal=bool(getattr(module, "is_decoder", True)),
        )
