"""Whether a recurrence is understood: its state and a few of its outputs computed, and compared with the model's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from probe.kernels.exact import exact
from probe.kernels.recurrence import Recurrence

# As many tokens as transformers' scans put together at once.
_SCANNED_TOKENS = 256


def disagreement(
    recurrence: Recurrence,
    output: Float[Tensor, "token state_head channel"],
    *,
    skip: Float[Tensor, "state_head #channel"] | None,
    output_gate: Float[Tensor, "token state_head channel"] | None,
    state_after: Float[Tensor, "state_head state channel"] | None,
) -> str | None:
    """Say where the model's own state after the tokens, or its output at up to four of them, is not the recurrence's.

    The tokens are the first, the last and two between them. The allowance follows the rounding of sums as large as
    these, in float32 and in the model's dtype, and of the sums of log-decays from whose differences scans take their
    decays, which is more where a layer forgets at once. A model that keeps its state in less than float32 rounds it at
    every token, and remembers that as long as anything. Values that are not finite are left out: whether a model
    computes NaN is not this function's question. None where all agrees.
    """
    length = recurrence.num_tokens
    rows = sorted({0, length // 3, 2 * length // 3, length - 1})
    counts = sorted({*rows, *(row + 1 for row in rows)})
    dtype = recurrence.exact_dtype
    with exact(recurrence.value.device):
        states = dict(zip(counts, recurrence.states(counts), strict=True))
        roundings = 64 + _largest_sum_of_logs(recurrence), 8.0
        kept_in = recurrence.state_before if state_after is None else state_after
        if torch.finfo(kept_in.dtype).eps > torch.finfo(torch.float32).eps:
            roundings = roundings[0], 8 + _longest_memory(recurrence)
        for row in rows:
            before, after = states[row], states[row + 1]
            expected = recurrence.read(row, before, after)
            size = _size_of_sum(recurrence, row, before if recurrence.bonus is not None else after)
            value = recurrence.value[row].to(dtype)
            if skip is not None:
                expected = expected + skip.to(dtype) * value
                size = size + _largest(skip.to(dtype) * value)
            if output_gate is not None:
                factor = output_gate[row].to(dtype)
                expected, size = expected * factor, size * _largest(factor)
            if said := _compared(expected, output[row].to(dtype), size, roundings, recurrence.value.dtype, "output"):
                return f"{said} at position {recurrence.start + row}"
        if state_after is None:
            return None
        last = states[length]
        size = torch.maximum(_largest(last), _largest(recurrence.state_before.to(dtype)))
        return _compared(last, state_after.to(dtype), size, roundings, recurrence.value.dtype, "state")


def _size_of_sum(recurrence: Recurrence, row: int, state: Tensor) -> Tensor:
    """Return how large the terms are that y is the sum of: its rounding follows them, not its own size."""
    query = recurrence.query[row].to(state.dtype)
    size = _largest(query.norm(dim=-1)) * _largest(state.norm(dim=1))
    if recurrence.read_gate is not None:
        size = size * _largest(recurrence.read_gate[row])
    if recurrence.bonus is not None:
        size = size + _largest(recurrence.bonus[row] * recurrence.value[row])
    return size


def _largest_sum_of_logs(recurrence: Recurrence) -> float:
    """Return the largest |log| of the decay over as many tokens as a scan takes at once."""
    logs = recurrence.log_decay.abs().float().amax((-2, -1))
    if recurrence.rate is not None:
        logs = logs * recurrence.rate.abs().amax((-2, -1))
    logs = logs.masked_fill(~logs.isfinite(), 0)
    return max(float(part.sum(0).amax()) for part in logs.split(_SCANNED_TOKENS))


def _longest_memory(recurrence: Recurrence) -> float:
    """Return after how many tokens the slowest head has forgotten all but 1/e, the chunk's length at most."""
    slowest = float(recurrence.decay().mean(1).amax())
    return min(recurrence.num_tokens, 1 / max(1 - slowest, 1e-6))


def _compared(
    expected: Tensor, found: Tensor, size: Tensor, roundings: tuple[float, float], dtype: torch.dtype, what: str
) -> str | None:
    """Say how far the two are apart, where it is more than so many roundings in float32 and in the dtype make."""
    single, own = torch.finfo(torch.float32).eps, torch.finfo(dtype).eps
    allowed = float((roundings[0] * single + (roundings[1] * own if own > single else 0)) * size)
    difference = (expected - found).abs()
    largest = float(difference.masked_fill(~difference.isfinite(), 0).amax())
    if largest <= allowed:
        return None
    return (
        f"its {what} is not what its recurrence gives: largest difference {largest:.3g}, where {allowed:.3g} is "
        f"allowed for {str(dtype).removeprefix('torch.')}"
    )


def _largest(tensor: Tensor) -> Tensor:
    return tensor.abs().masked_fill(~tensor.isfinite(), 0).amax()
