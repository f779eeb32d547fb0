"""What is known of each query once every key has been seen: the maximum and the normaliser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.kernels.call import Call


@dataclass(frozen=True, eq=False)
class Normaliser:
    """The largest logit and the log-sum-exp of a block of consecutive queries."""

    query_start: int
    """Position of the first query."""
    max_logit: Float[Tensor, "head query"] | None
    """Largest logit over the visible keys; −inf where there are none. None where the log-sum-exp was handed over, so
    that nobody has looked for it."""
    shift: Float[Tensor, "head query"]
    """What is taken off the logits first: the largest of them where known, else the log-sum-exp without the share of a
    learned sink. Finite where no key is visible."""
    log_excess: Float[Tensor, "head query"]
    """log Σ exp(s − shift), a learned sink's share included. Kept apart from the shift, since their sum would
    lose the digits that probabilities need where logits are large; where no key is visible it means nothing."""
    log_sum_exp: Float[Tensor, "head query"]
    """shift + log_excess: log Z."""
    sink_logit: Float[Tensor, "head"] | None
    """The learned sink's logit, where there is one."""
    num_visible: Int[Tensor, "query"]
    """Number of keys that each query sees."""

    @property
    def sink_probability(self) -> Float[Tensor, "head query"] | None:
        """The learned sink's share of Z, where there is one."""
        if self.sink_logit is None:
            return None
        return (self.sink_logit[:, None] - self.log_sum_exp).exp()


def found(
    call: Call,
    query_start: int,
    maximum: Float[Tensor, "head query"],
    excess: Float[Tensor, "head query"],
    num_visible: Int[Tensor, "query"],
) -> Normaliser:
    """Return the normaliser from the largest logit and log Σ exp(s − maximum) over the visible keys."""
    nothing = num_visible == 0
    max_logit = maximum.masked_fill(nothing, -torch.inf)
    return _with_sink(call, query_start, max_logit, maximum, excess, num_visible)


def given(call: Call, query_start: int, query_stop: int, num_visible: Int[Tensor, "query"]) -> Normaliser:
    """Return the normaliser of these queries from the log-sum-exp that the call hands over, all digits of it."""
    assert call.log_sum_exp is not None
    whole = call.log_sum_exp[:, query_start - call.query_start : query_stop - call.query_start]
    whole = whole.masked_fill(num_visible == 0, 0.0)
    shift = whole.float()
    # What float32 cannot say of a float64.
    excess = torch.where(shift.isfinite(), whole - shift, 0.0).float()
    return _with_sink(call, query_start, None, shift, excess, num_visible)


def _with_sink(
    call: Call, query_start: int, max_logit: Tensor | None, shift: Tensor, excess: Tensor, num_visible: Tensor
) -> Normaliser:
    log_sum_exp, sink = (shift + excess).masked_fill(num_visible == 0, -torch.inf), None
    if call.sink_logit is not None:
        sink = call.sink_logit.float()
        log_sum_exp = torch.logaddexp(log_sum_exp, sink[:, None])
        excess = torch.logaddexp(excess, sink[:, None] - shift)
    return Normaliser(query_start, max_logit, shift, excess, log_sum_exp, sink, num_visible)
