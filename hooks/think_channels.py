"""Cut the channels of the cached keys that the last queries ask least for (ThinK)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.last_tokens import LastTokens
from probe.hooks.attention.tap import site
from probe.kernels.call import Call
from probe.kernels.keys import BLOCK_KEYS, as_float64
from probe.kernels.score_change import Place, ScoreChange
from probe.kernels.scores import Scores

_LastToken = Literal["cut", "full"]


@dataclass(frozen=True)
class think_channels(ChangeOfCalls):
    """Set the least used channels of the prompt's keys to zero: `think_channels(0.5)(model)`.

    A channel's score, in each key-value head, is the mean of its squared entries over the prompt's last `window`
    queries and the query heads of the group, times the mean of its squared entries over the prompt's keys, both after
    rotation; the `int(width · ratio)` lowest go. Xu et al. (2024, arXiv 2407.21018, ThinK) in the form of NVIDIA's
    kvpress; the paper's own norm of the channel's products is not computed.

    Chosen once, when the prompt ends: a question with which it ends is known. The keys of decoded tokens keep their
    channels. Where a layer sees a window of tokens, the keys are those that the last query sees.
    """

    ratio: float
    """Share of the channels that go, from 0 (nothing changes) to below 1; the paper takes 0.4 and 0.5, kvpress 0."""
    window: int = 32
    """The prompt's last queries, of which the choice is made; kvpress' default."""
    last_token: _LastToken = "cut"
    """Whether the prompt's last token, from whose logits the answer's first token comes, meets `cut` keys or `full`
    ones. kvpress cuts after it, and so gives an answer's first token for free; here every answer token is of the cut
    cache unless one says otherwise. Its query and key count in the choice either way."""

    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio < 1:
            raise UsageError(f"think_channels: ratio is at least 0 and below 1, not {self.ratio}")
        if self.window < 1:
            raise UsageError(f"think_channels: window is at least 1, not {self.window}")
        if self.last_token not in get_args(_LastToken):
            raise UsageError(f"think_channels: last_token is {self.last_token!r}; expected cut, full")
        if self.phase == "prefill":
            raise UsageError("think_channels: phase 'prefill' leaves nothing: it acts from the prompt's end on")

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"key channels"})

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        _ = model
        last = LastTokens(self.window, "think_channels")
        dropped: dict[tuple[int, int], Bool[Tensor, "kv_head channel"]] = {}

        def change(here: site, sample: int, call: Call) -> Call:
            if not call.causal:
                return call
            if call.phase == "prefill":
                last.take(sample, call, call.query)
                return call
            where, before = (call.layer, sample), last.at_the_end(sample, call, call.query)
            if before is not None:
                queries = last.latest(torch.cat([before, call.query[:, :1]], 1))
                dropped[where] = lowest_channels(call, queries, self.ratio)
            if not bool(dropped[where].any()):
                return call
            return self._without(call, dropped[where], last.end(sample, call) + 1)

        return change

    def _without(self, call: Call, dropped: Bool[Tensor, "kv_head channel"], stop: int) -> Call:
        """Return the call with the keys before position `stop` cut for the queries that meet them so."""
        key = call.key.clone()
        of_prompt = key[:, : stop - call.key_start]
        of_prompt.masked_fill_(dropped[:, None], 0)
        changed = dataclasses.replace(call, key=key, log_sum_exp=None)
        if call.query_start >= stop or self.last_token == "cut":
            return changed
        if call.num_queries == 1:
            return call
        return dataclasses.replace(call, changes=(*call.changes, _later(Scores(changed), stop)), log_sum_exp=None)


@dataclass(frozen=True, eq=False)
class _later(ScoreChange):
    """Queries from position `first` on have the logits of another call."""

    scores: Scores
    first: int

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        rows = place.query_position >= self.first
        query = self.scores.query(place.query_start, place.query_start + place.num_queries)
        key = self.scores.key(place.key_start, place.key_start + place.num_keys)
        out = torch.empty(len(query), query.shape[1], key.shape[1], device=query.device)
        others = self.scores.logits(query, key, place.query_start, place.key_start, out)
        return torch.where(rows[:, None], others.to(logits.dtype), logits)


def lowest_channels(
    call: Call, queries: Float[Tensor, "head query channel"], ratio: float
) -> Bool[Tensor, "kv_head channel"]:
    """Return which channels go, by these queries and by the keys that a call's first query sees."""
    count = call.query_start + 1 - call.key_start
    start = 0 if call.window is None else max(0, count - call.window)
    energy, number = torch.zeros(call.num_kv_heads, call.key.shape[-1], dtype=torch.float64), 0
    for first in range(start, count, BLOCK_KEYS):
        part = slice(first, min(first + BLOCK_KEYS, count))
        squares = as_float64(call.key[:, part]).square()
        if call.key_visible is not None:
            squares = squares[:, call.key_visible[part].to(squares.device)]
        energy += squares.sum(1).cpu()
        number += squares.shape[1]
    asked = as_float64(queries).square().mean(1).unflatten(0, (call.num_kv_heads, -1)).mean(1).cpu()
    score = asked * energy / number
    order = score.argsort(dim=-1, stable=True)[:, : int(score.shape[-1] * ratio)]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, True).to(call.key.device)
