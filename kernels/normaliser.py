"""What is known of each query once every key has been seen: the maximum and the normaliser."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Normaliser:
    """The largest logit and the log-sum-exp of a block of consecutive queries."""

    query_start: int
    """Position of the first query."""
    max_logit: Float[Tensor, "head query"]
    """Largest logit over the visible keys; −inf where there are none."""
    log_excess: Float[Tensor, "head query"]
    """log Σ exp(s − max_logit), a learned sink's share included. Kept apart from the maximum, since their sum would
    lose the digits that probabilities need where logits are large; where no key is visible it means nothing."""
    log_sum_exp: Float[Tensor, "head query"]
    """max_logit + log_excess: log Z."""
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
