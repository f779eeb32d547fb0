"""What the heads of a call put out, computed from the call alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.exact import exact
from probe.kernels.flash_attention import can_flash, flash_attention_after_past
from probe.kernels.score_change import MASKED
from probe.kernels.walk import Walk


def attention_output(
    call: Call,
) -> tuple[Float[Tensor, "query head value_channel"], Float[Tensor, "head query"] | None]:
    """Return Σ_j p_ij v_j in the queries' dtype, and the log-sum-exp of the keys where a fused operator gave it.

    For calls that an intervention has changed, which the model's own attention cannot compute. A call that is plainly
    causal goes to a fused operator; any other is computed block by block in float32, in memory linear in the tokens.
    No gradient flows through it. Raises `ValueError` where a query is left no key by `call.changes`.
    """
    with exact(call.query.device):
        if _is_plain(call) and can_flash(call.query[None], call.key[None], call.value[None]):
            query, key, value = call.query[None], call.key[None], call.value[None]
            output, log_sum_exp = flash_attention_after_past(query, key, value, scale=call.scale)
            if call.sink_logit is not None:
                share = torch.sigmoid(log_sum_exp[0] - call.sink_logit.to(log_sum_exp)[:, None])
                output = output * share[None, ..., None].to(output.dtype)
            exactly = None if call.query.dtype in (torch.float16, torch.bfloat16) else log_sum_exp[0].float()
            return output[0].transpose(0, 1), exactly
        return _by_blocks(call), None


def _is_plain(call: Call) -> bool:
    rules = (call.softcap, call.alibi_slope, call.distance_bias, call.document, call.key_visible)
    at_the_end = call.query_start + call.num_queries == call.key_start + call.num_keys
    windowed = call.window is not None and call.window < call.num_keys
    return call.causal and at_the_end and not windowed and not call.changes and all(each is None for each in rules)


def _by_blocks(call: Call) -> Float[Tensor, "query head value_channel"]:
    output = call.value.new_empty(call.num_queries, call.num_heads, call.value.shape[-1])
    for normaliser, blocks in Walk().over(call):
        if bool(((normaliser.shift <= MASKED / 2) & (normaliser.num_visible > 0)).any()):
            raise ValueError(
                f"layer {call.layer}: queries from {normaliser.query_start} on are left no key to attend to"
            )
        first, rows = normaliser.query_start - call.query_start, None
        for block in blocks:
            part = block.output(0, block.probability.shape[2])
            rows = part if rows is None else rows + part
        assert rows is not None
        output[first : first + rows.shape[1]] = rows.transpose(0, 1).to(output.dtype)
    return output
