"""Attention a few rows at a time, for what fused operators do not compute: softcaps, learned sinks, windows."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.hooks.attention.verification import visible

# Scores that are held at once, over all heads: 64 MB in float32.
_SCORES = 1 << 24


def attention_by_rows(
    module: nn.Module,
    query: Float[Tensor, "batch head query channel"],
    key: Float[Tensor, "batch kv_head key channel"],
    value: Float[Tensor, "batch kv_head key value_channel"],
    mask: Tensor | None,
    *,
    scaling: float,
    is_causal: bool = True,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, "head"] | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch query head value_channel"], None]:
    """Return what the layer's heads put out, and no weights; takes what transformers gives an attention function.

    Products in the model's dtype and the softmax in float32, as eager attention has them. Without a mask the last query
    stands at the last key. At most 64 MB of scores are held at once, or one row of all heads.
    """
    batch, heads, num_queries, _ = query.shape
    num_keys, group = key.shape[2], heads // key.shape[1]
    rows = max(1, _SCORES // max(1, batch * heads * num_keys))
    grouped = query.unflatten(1, (key.shape[1], group))
    output = query.new_empty(batch, num_queries, heads, value.shape[-1])
    positions = torch.arange(num_keys, device=query.device)
    for start in range(0, num_queries, rows):
        stop = min(start + rows, num_queries)
        # The heads of a group lie in one matrix, so that their keys are not repeated.
        products = grouped[:, :, :, start:stop].flatten(2, 3) @ key.transpose(-2, -1)
        scores = products.unflatten(2, (group, stop - start)).flatten(1, 2) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if mask is None:
            at = torch.arange(start, stop, device=query.device) + num_keys - num_queries
            seen = visible(at, positions, causal=is_causal, window=sliding_window)
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        else:
            part = mask[:, :, start:stop, :num_keys]
            lowest = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~part, lowest) if part.dtype == torch.bool else scores + part
        if s_aux is not None:
            sink = s_aux.to(scores)[None, :, None, None].expand(batch, heads, stop - start, 1)
            scores = torch.cat([scores, sink], dim=-1)
        pattern = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)[..., :num_keys]
        mixed = pattern.unflatten(1, (key.shape[1], group)).flatten(2, 3) @ value
        output[:, start:stop] = mixed.unflatten(2, (group, stop - start)).flatten(1, 2).transpose(1, 2)
    return output, None
