"""The two stacks of an encoder-decoder, and what a forward of each says about its tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import NotReproducible
from probe.hooks.attention.interface import name_of
from probe.hooks.sequence.forward_facts import Part, forward_facts


def two_stacks(model: PreTrainedModel) -> dict[nn.Module, Part]:
    """The encoder and the decoder of an encoder-decoder, by what their own attention is called; {} for other models.

    Raises `NotReproducible` where the two cannot be told apart.
    """
    if not getattr(model.config, "is_encoder_decoder", False):
        return {}
    encoder, decoder = model.get_encoder(), model.get_decoder()
    apart = isinstance(encoder, nn.Module) and isinstance(decoder, nn.Module)
    if not apart or encoder is decoder or model in (encoder, decoder):
        raise NotReproducible(f"{name_of(model)}: its encoder and its decoder cannot be told apart")
    return {encoder: "encoder", decoder: "self"}


def facts_of_stack(
    part: Part, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, model_name: str,
    **declared: Any,
) -> forward_facts:  # fmt: skip
    """Read the facts of a stack's forward from its arguments; what was declared of the sequence is the decoder's.

    Raises `NotReproducible` for an encoder that reads no tokens, a mask that is not 2-D, and a decoder without the
    encoder's states.
    """
    if part == "encoder":
        facts = forward_facts.of(module, args, kwargs, model_name=model_name)
        facts.part = "encoder"
        return facts
    facts = forward_facts.of(module, args, kwargs, model_name=model_name, **declared)
    given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    given = {**given, **given.pop("kwargs", {})}
    states = given.get("encoder_hidden_states")
    if not isinstance(states, Tensor) or states.shape[0] != facts.num_samples:
        raise NotReproducible(f"{model_name}: its decoder ran without the states of its encoder")
    over = forward_facts(
        model_name, facts.num_samples, states.shape[1], kept=_kept(given.get("encoder_attention_mask"), model_name)
    )
    size = facts.num_samples, facts.num_queries, facts.num_past
    facts.cross = forward_facts(model_name, *size, facts.kept, facts.phase, part="cross", over=over)
    return facts


def _kept(mask: Any, model_name: str) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise NotReproducible(f"{model_name}: a custom mask over the encoder is not understood; pass a 2-D one")
    return mask.detach() != 0
