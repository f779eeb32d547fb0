"""The dense float64 definition of attention, on which every statistic's own definition is written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.call import Call
from probe.kernels.score_change import MASKED, Place
from probe.sample import Span

MAX_KEYS = 4096
"""A dense matrix of more keys than this is refused: it is a definition, not a way to compute."""


class Dense:
    """Logits and probabilities of one whole call, [head, query, key], in float64.

    `below` is the same prompt in the attention layer before. Raises `UsageError` for a call of more than 4,096 keys.
    """

    def __init__(self, call: Call, spans: Sequence[Span] = (), below: Call | None = None) -> None:
        if call.num_keys > MAX_KEYS:
            raise UsageError(f"the dense definition takes at most {MAX_KEYS:,} keys, not {call.num_keys:,}")
        self.call = call
        self.below = below
        self.spans = tuple(spans)

    @cached_property
    def query_position(self) -> Int[Tensor, "query"]:
        """Positions of the queries."""
        return self.call.query_start + torch.arange(self.call.num_queries, device=self.call.query.device)

    @cached_property
    def key_position(self) -> Int[Tensor, "key"]:
        """Positions of the keys."""
        return self.call.key_start + torch.arange(self.call.num_keys, device=self.call.query.device)

    @cached_property
    def distance(self) -> Int[Tensor, "query key"]:
        """Query position minus key position."""
        return self.query_position[:, None] - self.key_position[None, :]

    @cached_property
    def visible(self) -> Bool[Tensor, "query key"]:
        """Whether the query sees the key."""
        visible = torch.ones_like(self.distance, dtype=torch.bool)
        if self.call.causal:
            visible &= self.distance >= 0
        if self.call.window is not None:
            visible &= (self.distance < self.call.window) & (self.distance > -self.call.window)
        if self.call.document is not None:
            own = self.call.document[self.query_position - self.call.key_start]
            visible &= own[:, None] == self.call.document[None, :]
        if self.call.key_visible is not None:
            visible &= self.call.key_visible
        return visible

    @cached_property
    def logit(self) -> Float[Tensor, "head query key"]:
        """s_ij: scaled, capped, and −inf where the query does not see the key."""
        group = self.call.num_heads // self.call.num_kv_heads
        key = self.call.key.double().repeat_interleave(group, dim=0)
        logit = self.call.query.double() @ key.transpose(1, 2) * self.call.scale
        if self.call.softcap is not None:
            logit = self.call.softcap * torch.tanh(logit / self.call.softcap)
        if self.call.alibi_slope is not None:
            logit = logit - self.call.alibi_slope.double()[:, None, None] * self.distance.abs()
        if self.call.distance_bias is not None:
            index = (self.distance - self.call.distance_bias_start).clamp(0, self.call.distance_bias.shape[1] - 1)
            logit = logit + self.call.distance_bias.double()[:, index]
        place = Place(self.call, self.call.query_start, self.call.num_queries, self.call.key_start, self.call.num_keys)
        for change in self.call.changes:
            logit = change(logit, place)
        logit = logit.masked_fill(logit <= MASKED / 2, -torch.inf)
        return logit.masked_fill(~self.visible, -torch.inf)

    @cached_property
    def log_sum_exp(self) -> Float[Tensor, "head query"]:
        """log Z_i, a learned sink's share included; −inf where there is nothing to see."""
        log_sum_exp = self.logit.logsumexp(-1)
        if self.call.sink_logit is None:
            return log_sum_exp
        return torch.logaddexp(log_sum_exp, self.call.sink_logit.double()[:, None].expand_as(log_sum_exp))

    @cached_property
    def probability(self) -> Float[Tensor, "head query key"]:
        """p_ij; a row that sees nothing is zero."""
        log_probability = self.logit - self.log_sum_exp[..., None]
        return log_probability.exp().masked_fill(~self.visible, 0.0)

    @cached_property
    def sink_probability(self) -> Float[Tensor, "head query"]:
        """The learned sink's share of Z_i; zero where there is none."""
        if self.call.sink_logit is None:
            return torch.zeros_like(self.log_sum_exp)
        return (self.call.sink_logit.double()[:, None] - self.log_sum_exp).exp()

    @cached_property
    def value(self) -> Float[Tensor, "head key value_channel"]:
        """Values, one for each query head."""
        return self.call.value.double().repeat_interleave(self.call.num_heads // self.call.num_kv_heads, dim=0)

    def inside(self, span: Span) -> Bool[Tensor, "key"]:
        """Return which keys stand in the span."""
        return (self.key_position >= span.start) & (self.key_position < span.stop)
