"""Whether a call is understood: its output recomputed for a few rows, and its mask compared with what it says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.exact import exact as in_full_float32

# Cells of a mask that are compared at once; bounds the memory of the comparison to a few megabytes.
_MASK_CELLS = 1 << 20
# Keys whose norms and values are looked at first; so many are a small part of a long cache, and all of a short one.
_SAMPLED_KEYS = 256


def visible(
    queries: Int[Tensor, "query"],
    keys: Int[Tensor, "key"],
    *,
    causal: bool,
    window: int | None,
    document: Int[Tensor, "key"] | None = None,
    key_start: int = 0,
) -> Bool[Tensor, "query key"]:
    """True where the query at the one position sees the key at the other, as `Call` defines it.

    `document` is that of all the call's keys, of which the first stands at `key_start`; positions outside of them
    count as the nearest.
    """
    distance = queries[:, None] - keys[None, :]
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        seen = seen & (distance < window)
        if not causal:
            seen = seen & (distance > -window)
    if document is not None:
        of_query, of_key = (document[(each - key_start).clamp(0, len(document) - 1)] for each in (queries, keys))
        seen = seen & (of_query[:, None] == of_key)
    return seen


@dataclass(frozen=True)
class deviation:
    """How far a call is from its own attention recomputed at a few rows."""

    output: float
    """Largest difference of the output."""
    output_allowed: float
    """What is allowed there."""
    log_sum_exp: float = 0.0
    """Largest difference of the log-sum-exp, where the call has one; in nats."""
    log_sum_exp_allowed: float = 0.0
    """What is allowed there."""
    finite: bool = True
    """Whether, where the call has a log-sum-exp, all its queries and keys are finite."""


def recomputed(call: Call, output: Float[Tensor, "query head value_channel"]) -> deviation:
    """Compare `output` and the call's log-sum-exp with the call's own attention at up to four rows.

    The rows are the first, the last and two between them; they are recomputed in float32 (float64 for a float64
    model), a key-value head at a time, at the cost of at most four more queries in every call. The allowance follows
    the rounding of the logits and of the output in the model's dtype, so that in bfloat16 and float16 only a
    difference above some percent of the largest value is seen; masks are compared exactly by `mask_difference`. Fused
    operators keep the logits in float32, so a log-sum-exp is held to float32's rounding whatever the dtype. Values
    that are not finite are left out: whether a model computes NaN is not this function's question.

    The allowance is at first bounded from below by that of a few hundred keys, which costs no further pass over keys
    and values; only what exceeds that is held to the allowance of all. So no call is judged otherwise for it.
    """
    step = max(1, call.num_keys // _SAMPLED_KEYS)
    with in_full_float32(call.query.device):
        quick = _compared(call, output, step)
        if step == 1 or (quick.output <= quick.output_allowed and quick.log_sum_exp <= quick.log_sum_exp_allowed):
            return quick
        return _compared(call, output, 1)


def _compared(call: Call, output: Float[Tensor, "query head value_channel"], step: int) -> deviation:
    """Compare, with the allowance of every `step`-th key."""
    num_queries, num_keys = call.num_queries, call.num_keys
    rows = torch.tensor(sorted({0, num_queries // 3, 2 * num_queries // 3, num_queries - 1}), device=call.query.device)
    exact = torch.float64 if call.query.dtype == torch.float64 else torch.float32
    keys = torch.arange(num_keys, device=rows.device) + call.key_start
    hidden = ~_visible(call, rows + call.query_start, keys)
    group = call.num_heads // call.num_kv_heads
    found = []
    for kv_head in range(call.num_kv_heads):
        heads = slice(kv_head * group, (kv_head + 1) * group)
        key, value = call.key[kv_head].to(exact), call.value[kv_head].to(exact)
        query = call.query[heads, rows].to(exact) * call.scale
        logits = query @ key.T
        # A product with what is not finite is not finite: the last row shows all keys that any row sees.
        all_finite = logits[:, -1].isfinite().all()
        norms = query.norm(dim=-1).amax() * key[::step].norm(dim=-1).amax()
        if call.softcap is not None:
            logits = call.softcap * torch.tanh(logits / call.softcap)
        if call.alibi_slope is not None:
            distance = (rows + call.query_start)[:, None] - keys
            logits = logits - call.alibi_slope[heads].to(logits)[:, None, None] * distance.abs()
        if call.distance_bias is not None:
            entry = (rows + call.query_start)[:, None] - keys - call.distance_bias_start
            logits = logits + call.distance_bias[heads].to(logits)[:, entry.clamp(0, call.distance_bias.shape[1] - 1)]
        logits = logits.masked_fill(hidden, -torch.inf)
        compared = [norms.new_zeros(())] * 3
        if call.log_sum_exp is not None:
            given = call.log_sum_exp[heads][:, rows].to(exact)
            compared = [
                *_log_sum_exps(logits.logsumexp(dim=-1), given, norms),
                (all_finite & torch.stack(call.query[heads].aminmax()).isfinite().all()).logical_not().to(exact),
            ]
        if call.sink_logit is not None:
            sink = call.sink_logit[heads].to(exact)[:, None, None].expand(group, len(rows), 1)
            logits = torch.cat([logits, sink], dim=-1)
        expected = logits.softmax(dim=-1)[..., :num_keys] @ value
        difference = (output[rows][:, heads].to(exact).transpose(0, 1) - expected).abs()
        difference = difference.masked_fill(~difference.isfinite(), 0).amax()
        coarser = max(call.query.dtype, output.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        found.append(torch.stack([difference, _allowance(norms, value[::step], logits, coarser), *compared]))
    # One transfer from the device for all heads.
    heads_found = torch.stack(found).tolist()
    of_output, of_log_sum_exp = (
        max(((each[i], each[i + 1]) for each in heads_found), key=lambda pair: pair[0] - pair[1]) for i in (0, 2)
    )
    return deviation(*of_output, *of_log_sum_exp, finite=not any(each[4] for each in heads_found))


def _log_sum_exps(expected: Tensor, given: Tensor, norms: Tensor) -> list[Tensor]:
    """Largest difference and what is allowed; a row that is finite where the other is not differs by infinity."""
    difference = (given - expected).abs().nan_to_num(nan=torch.inf).masked_fill(~expected.isfinite(), 0).amax()
    single = torch.finfo(torch.float32).eps
    largest = expected.masked_fill(~expected.isfinite(), 0).abs().amax()
    return [difference, 8 * single * norms.nan_to_num(posinf=0) + 32 * single * largest.clamp_min(1)]


def _allowance(norms: Tensor, value: Tensor, logits: Tensor, dtype: torch.dtype) -> Tensor:
    # Eager attention takes its softmax in float32 whatever the model's dtype is.
    single, own = torch.finfo(torch.float32).eps, torch.finfo(dtype).eps
    largest = logits.masked_fill(~logits.isfinite(), 0).abs().amax()
    # A logit is a sum of products that may cancel, so its rounding follows the norms, not its own size.
    logit_error = 8 * single * norms + (own * largest if own > single else 0)
    # So does that of a sum over many keys, and where tokens repeat its roundings fall to the same side.
    summed = max(32.0, logits.shape[-1] ** 0.5) * single
    allowed: Tensor = (logit_error + max(2 * own, summed)) * torch.stack(value.aminmax()).abs().amax()
    return allowed.nan_to_num(nan=torch.inf)


def _visible(call: Call, queries: Int[Tensor, "query"], keys: Int[Tensor, "key"]) -> Bool[Tensor, "query key"]:
    return visible(
        queries, keys, causal=call.causal, window=call.window, document=call.document, key_start=call.key_start
    )


def shown_by_mask(call: Call, shows: Literal["all", "causal", "padding"]) -> Call:
    """The call without the rules that a module applies beside its mask: its window, or all but padding."""
    if shows == "all":
        return call
    return replace(call, window=None, causal=call.causal and shows == "causal")


def mask_difference(
    mask: Tensor, *, sample: int, rows: tuple[int, int], columns: tuple[int, int], call: Call, hides: bool = False,
    bias: Float[Tensor, "batch head key"] | None = None,
) -> str | None:  # fmt: skip
    """Where a 4-D mask, boolean or additive, disagrees with `call`, in words; None where it agrees everywhere.

    `rows` and `columns` are the ranges of the mask that hold the call's queries and keys. A boolean mask is True where
    a key is seen, or where it is hidden with `hides`; an additive one holds 0, or the `bias` of the key, where it is
    seen. A few megabytes at a time.
    """
    if mask.shape[2] == 1 and not call.causal:
        # One row for all queries, where a module is given padding alone.
        mask = mask.expand(-1, -1, rows[1], -1)
    part = mask[sample if mask.shape[0] > 1 else 0, :, rows[0] : rows[1]]
    positions = torch.arange(part.shape[-1], device=mask.device) - columns[0] + call.key_start
    inside = torch.zeros(part.shape[-1], dtype=torch.bool, device=mask.device)
    inside[columns[0] : columns[1]] = True
    step = max(1, _MASK_CELLS // max(part.shape[-1] * part.shape[0], 1))
    added: Tensor | int = 0 if bias is None else bias[sample if bias.shape[0] > 1 else 0, :, None]
    for start in range(0, part.shape[1], step):
        block = part[:, start : start + step]
        queries = torch.arange(start, start + block.shape[1], device=mask.device) + call.query_start
        expected = _visible(call, queries, positions) & inside
        if block.dtype == torch.bool:
            agrees = (block != hides) == expected
        else:
            agrees = torch.where(expected, block == added, block <= torch.finfo(block.dtype).min / 4)
        if not bool(agrees.all()):
            _, query, key = (int(index) for index in torch.nonzero(~agrees)[0])
            return (
                f"its mask at query {int(queries[query])}, key {int(positions[key])} is "
                f"{block[0, query, key].item()}, where {'a visible' if expected[query, key] else 'a hidden'} key "
                f"was expected ({'causal' if call.causal else 'bidirectional'}, window {call.window})"
            )
    return None
