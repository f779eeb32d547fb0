"""What the heads of a call put out, computed from the call alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.exact import exact
from probe.kernels.flash_attention import can_flash, flash_attention_after_past
from probe.kernels.score_change import MASKED
from probe.kernels.scores import Scores

_BLOCK = {True: (128, 512), False: (512, 4096)}
"""Queries and keys of a block, on a CPU, where its scores should stay in the cache, and on other devices."""
_NOTHING = -80.0
"""exp(−80) is lost in a sum of which one term is 1; what lies below costs a CPU's exponential ten times as much."""


def attention_output(
    call: Call,
) -> tuple[Float[Tensor, "query head value_channel"], Float[Tensor, "head query"] | None]:
    """Return Σ_j p_ij v_j in the values' dtype, and the log-sum-exp of the keys where it is exact to float32.

    For calls that an intervention has changed, which the model's own attention cannot compute. A call that is plainly
    causal goes to a fused operator; any other is computed block by block in float32, in memory linear in the tokens.
    No gradient flows through it. Raises `ValueError` where a query is left no key by `call.changes`.
    """
    with exact(call.query.device):
        # Queries and keys that were turned further are of float32 where a model's values are of half of it.
        dtype = torch.promote_types(torch.promote_types(call.query.dtype, call.key.dtype), call.value.dtype)
        query, key, value = (each.to(dtype)[None] for each in (call.query, call.key, call.value))
        if _is_plain(call) and can_flash(query, key, value):
            output, log_sum_exp = flash_attention_after_past(query, key, value, scale=call.scale)
            if call.sink_logit is not None:
                share = torch.sigmoid(log_sum_exp[0] - call.sink_logit.to(log_sum_exp)[:, None])
                output = output * share[None, ..., None].to(output.dtype)
            exactly = None if dtype in (torch.float16, torch.bfloat16) else log_sum_exp[0].float()
            return output[0].transpose(0, 1).to(call.value.dtype), exactly
        return _by_blocks(call)


def _is_plain(call: Call) -> bool:
    rules = (call.softcap, call.alibi_slope, call.distance_bias, call.document, call.key_visible)
    at_the_end = call.query_start + call.num_queries == call.key_start + call.num_keys
    windowed = call.window is not None and call.window < call.num_keys
    return call.causal and at_the_end and not windowed and not call.changes and all(each is None for each in rules)


def _by_blocks(
    call: Call,
) -> tuple[Float[Tensor, "query head value_channel"], Float[Tensor, "head query"]]:
    """Attend block by block, the maximum and the sums rescaled as further keys come (Rabe and Staats 2021)."""
    scores = Scores(call)
    num_queries, num_keys = _BLOCK[call.query.device.type == "cpu"]
    output = call.value.new_empty(call.num_queries, call.num_heads, call.value.shape[-1])
    log_sum_exp = torch.empty(call.num_heads, call.num_queries, device=output.device)
    room = torch.empty(call.num_heads * num_queries * num_keys, device=output.device)
    for start in range(call.query_start, scores.query_stop, num_queries):
        stop = min(start + num_queries, scores.query_stop)
        query = scores.query(start, stop)
        first, last = scores.visible_keys(start, stop)
        mixed = query.new_zeros(*query.shape[:2], call.value.shape[-1])
        maximum = query.new_full((call.num_heads, stop - start), -torch.inf)
        total = torch.zeros_like(maximum)
        for cut in range(first, last, num_keys):
            key = scores.key(cut, min(cut + num_keys, last))
            out = room[: len(key) * query.shape[1] * key.shape[1]].view(len(key), query.shape[1], key.shape[1])
            logits = scores.logits(query, key, start, cut, out)
            highest = torch.maximum(maximum, logits.amax(-1))
            kept = (maximum - highest).exp_()
            weight = logits.sub_(highest[..., None]).clamp_(min=_NOTHING).exp_()
            total = total * kept + weight.sum(-1)
            value = call.value[:, cut - call.key_start : cut - call.key_start + key.shape[1]].float()
            mixed.mul_(kept.view(*mixed.shape[:2], 1)).baddbmm_(weight.view(out.shape), value)
            maximum = highest
        sees = scores.num_visible(start, stop) > 0
        if bool(((maximum <= MASKED / 2) & sees).any()):
            raise ValueError(f"layer {call.layer}: queries from {start} on are left no key to attend to")
        own = maximum + total.log()
        whole = own if call.sink_logit is None else torch.logaddexp(own, call.sink_logit.float()[:, None])
        share = ((maximum - whole).exp() * sees).view(*mixed.shape[:2], 1)
        rows = slice(start - call.query_start, stop - call.query_start)
        output[rows] = (mixed * share).view(call.num_heads, stop - start, -1).transpose(0, 1).to(output.dtype)
        log_sum_exp[:, rows] = own.masked_fill(~sees, -torch.inf)
    return output, log_sum_exp
