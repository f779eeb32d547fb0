"""The log-sum-exp that SDPA's fused operators hand over beside the output, taken where it is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from probe.kernels.call import Call

_ATEN = torch.ops.aten
_OPERATORS = (
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
)


@dataclass(frozen=True, eq=False)
class fused_attention:
    """One call of a fused operator: what it says of its queries, and which keys it let them see."""

    log_sum_exp: Float[Tensor, "batch head query"]
    """Log-sum-exp over the keys that each query saw, in nats."""
    num_keys: int
    """Keys that it was given."""
    visible: Literal["all", "causal", "masked"]
    """All keys; those up to the query's own, where the last query stands at the last key; or those of a given mask."""


class fused_operators(TorchDispatchMode):
    """Within the block, remembers what SDPA's operators return beside the output; what they compute is untouched.

    CPU and CUDA flash attention always return the log-sum-exp, memory-efficient and cuDNN attention only where a
    gradient is wanted. What the unfused path computes has none.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[fused_attention | None] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in _OPERATORS:
            names = [each.name for each in function._schema.arguments]
            self.seen.append(_read({**dict(zip(names, args, strict=False)), **(kwargs or {})}, result[1]))
        return result

    @property
    def only(self) -> fused_attention | None:
        """What the one operator that ran said; None where none did, more than one, or it said nothing."""
        return self.seen[0] if len(self.seen) == 1 else None

    def together(self, num_queries: int) -> fused_attention | None:
        """What the one operator said, or several that took the queries in turn, each with its rows of one mask; None
        where one of them said nothing, or they saw other queries than these."""
        said = [each for each in self.seen if each is not None]
        if len(self.seen) < 2 or len(said) < len(self.seen):
            return self.only
        alike = {(each.num_keys, each.visible) for each in said} == {(said[0].num_keys, "masked")}
        if not alike or sum(each.log_sum_exp.shape[2] for each in said) != num_queries:
            return None
        return fused_attention(torch.cat([each.log_sum_exp for each in said], 2), said[0].num_keys, "masked")


def _read(given: dict[str, Any], log_sum_exp: Any) -> fused_attention | None:
    query, num_keys = given["query"], given["key"].shape[2]
    batch, heads, num_queries = query.shape[:3]
    if not isinstance(log_sum_exp, Tensor) or given.get("dropout_p", 0.0) != 0.0:
        return None
    # cuDNN's has an axis more, the memory-efficient operator's is filled up to a multiple of 32 queries.
    if log_sum_exp.ndim == 4 and log_sum_exp.shape[-1] == 1:
        log_sum_exp = log_sum_exp[..., 0]
    if log_sum_exp.ndim != 3 or log_sum_exp.shape[:2] != (batch, heads) or log_sum_exp.shape[2] < num_queries:
        return None
    masked, causal = (given.get("attn_mask", given.get("attn_bias")) is not None), given.get("is_causal", False)
    # Fewer queries than keys are aligned at the first key by some operators, the CPU's among them.
    if causal and (masked or num_queries != num_keys):
        return None
    visible: Literal["all", "causal", "masked"] = "masked" if masked else "causal" if causal else "all"
    return fused_attention(log_sum_exp[..., :num_queries], num_keys, visible)


def log_sum_exp_of(call: Call, sample: int, fused: fused_attention | None) -> Float[Tensor, "head query"] | None:
    """The call's own log-sum-exp out of what a fused operator said, or None wherever it is not provably the same.

    The same queries must have seen the same keys: none was sliced off as padding, and what the operator let them see
    is what the call says (a mask has been found equal to it before). Nothing that the operators do not know may take
    part: softcap, learned sink, ALiBi, packed documents, hidden keys.
    """
    special = (call.softcap, call.sink_logit, call.alibi_slope, call.document, call.key_visible)
    if fused is None or fused.num_keys != call.num_keys or any(each is not None for each in special):
        return None
    # The CPU's operator takes the exponentials of half precision from a polynomial, 6e-5 nats off.
    if call.query.device.type == "cpu" and call.query.dtype in (torch.bfloat16, torch.float16):
        return None
    found = fused.log_sum_exp[sample]
    # One query of grouped heads goes in as a few queries of each key-value head.
    if found.shape[1] != call.num_queries and call.num_queries != 1:
        return None
    if found.numel() != call.num_heads * call.num_queries:
        return None
    if fused.visible != "masked":
        at_the_end = call.query_start + call.num_queries == call.key_start + call.num_keys
        sees_all = not call.causal or (call.num_queries == 1 and at_the_end)
        right = sees_all if fused.visible == "all" else call.causal and at_the_end
        if not right or (call.window is not None and call.window < call.num_keys):
            return None
    return found.reshape(call.num_heads, call.num_queries).detach().float()
