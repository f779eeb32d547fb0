"""The model's own attention as it is, or, in a chunk of a prompt, in two parts that need no mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from probe.hooks.attention.fused import fused_attention, fused_operators
from probe.hooks.attention.interface import own_attention
from probe.hooks.attention.prompt_chunk import prompt_chunk, running_chunk
from probe.hooks.attention.relative_bias import attend_with
from probe.kernels.flash_attention import can_flash, flash_attention_after_past


def attend(
    own: own_attention, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    options: dict[str, Any], *, causal: bool, observed: bool,
) -> tuple[Any, Any, Tensor | None, fused_attention | None]:  # fmt: skip
    """Return output, weights, the mask that was in force, and what a fused operator said beside the output.

    A chunk of a prompt whose plain causal mask was left out is split: its queries attend to the past without a mask
    and to one another causally, and the two are merged by their log-sum-exps, in the operators that SDPA itself would
    choose. Where that would not be exact (softcap, learned sinks, position bias, window, dropout) or has no operator,
    the mask is made after all and the model's own attention called with it. `observed` asks for the log-sum-exp.
    """
    chunk = running_chunk()
    if chunk is not None and chunk.make is not None and mask is None and causal and query.shape[2] > 1:
        if _is_of(chunk, query, key) and own.is_sdpa and _is_plain(options) and can_flash(query, key, value):
            scale = options.get("scaling")
            scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
            output, log_sum_exp = flash_attention_after_past(query, key, value, scale=scale)
            said = fused_attention(log_sum_exp, key.shape[2], "causal")
            return output.transpose(1, 2).contiguous(), None, None, said
        mask = chunk.mask
    if not observed or not own.is_sdpa:
        return *attend_with(own, module, query, key, value, mask, options, causal=causal), mask, None
    with fused_operators() as operators:
        output, weights = attend_with(own, module, query, key, value, mask, options, causal=causal)
    return output, weights, mask, operators.together(query.shape[2])


def _is_of(chunk: prompt_chunk, query: Tensor, key: Tensor) -> bool:
    return query.shape[2] == chunk.num_tokens and key.shape[2] == chunk.num_past + chunk.num_tokens


def _is_plain(options: dict[str, Any]) -> bool:
    special = ("softcap", "s_aux", "position_bias", "sliding_window", "cache", "head_mask")
    return all(options.get(name) is None for name in special) and not options.get("dropout")
