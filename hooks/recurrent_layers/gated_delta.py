"""Gated delta rules: a decay for each head, or for each component of its keys, and a correction of what is held."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probe.hooks.recurrence.layer import RecurrentFamily, function_call, mixer_forward, scanned


class gated_delta(RecurrentFamily):
    """Mixers that call the gated delta rule: those of Qwen3-Next, Qwen3.5 and OLMo-hybrid; and Kimi's delta attention.

    k and q normalised and q scaled as the rule does it, v after the convolution, g = β, a = exp(its decay): one for
    each value head, or in Kimi's for each component of the key.
    """

    functions = (
        "torch_chunk_gated_delta_rule",
        "torch_recurrent_gated_delta_rule",
        "chunk_kimi_delta_attention",
        "recurrent_kimi_delta_attention",
    )
    in_place = ("initial_state",)

    def read(self, module: nn.Module, forward: mixer_forward) -> list[scanned]:
        """Read the rule of a chunk or of one token."""
        return [_read(call) for call in forward.calls]


def _read(call: function_call) -> scanned:
    given, (output, after) = call.arguments, call.output
    query, key = given["query"], given["key"]
    if query.dtype != torch.float64:
        query, key = query.float(), key.float()
    if given["use_qk_l2norm_in_kernel"]:
        query, key = _normalised(query), _normalised(key)
    decay = given["g"]
    return scanned(
        query=query * query.shape[-1] ** -0.5,
        key=key,
        value=given["value"],
        gate=given["beta"][..., None],
        log_decay=decay[..., None] if decay.ndim == 4 else decay[..., None, None],
        delta=True,
        output=output,
        state_before=given["initial_state"],
        state_after=after,
    )


def _normalised(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + 1e-6)
