"""Attention without its first tokens."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.tap import site
from probe.kernels.call import Call
from probe.kernels.score_change import MASKED, Place, ScoreChange


@dataclass(frozen=True)
class remove_sink(ChangeOfCalls):
    """Hide the first tokens from every later query: `with remove_sink()(model):`.

    What they received is shared out over the other keys by the softmax. Xiao et al. (2023, arXiv 2309.17453) lose them
    by a window that moves on; here everything else stays in sight, so that the sink alone is missing. The first tokens
    themselves attend as before, and their keys stay in the cache. A model with a learned sink's logit keeps it.
    """

    num_tokens: int = 1
    """How many tokens at the beginning are hidden; 1 is the sink of most models, Xiao et al. keep 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_tokens < 1:
            raise UsageError(f"remove_sink: num_tokens is at least 1, not {self.num_tokens}")

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        hidden = _hidden(self.num_tokens)

        def change(here: site, sample: int, call: Call) -> Call:
            stop = call.query_start + call.num_queries
            if stop <= self.num_tokens or call.key_start >= self.num_tokens:
                return call
            return dataclasses.replace(call, changes=(*call.changes, hidden), log_sum_exp=None)

        return change


@dataclass(frozen=True, eq=False)
class _hidden(ScoreChange):
    num_tokens: int

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        num_keys = max(0, self.num_tokens - place.key_start)
        first_query = max(0, self.num_tokens - place.query_start)
        logits[:, first_query:, :num_keys] = MASKED
        return logits
