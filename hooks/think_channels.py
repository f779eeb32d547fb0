"""Cut the channels of the cached keys that the last queries ask least for (ThinK)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.last_queries import LastQueries
from probe.hooks.attention.tap import site
from probe.kernels.call import Call
from probe.kernels.keys import BLOCK_KEYS, as_float64


@dataclass(frozen=True)
class think_channels(ChangeOfCalls):
    """Set the least used channels of the prompt's keys to zero: `think_channels(0.5)(model)`.

    A channel's score, in each key-value head, is the mean of its squared entries over the prompt's last `window`
    queries and the query heads of the group, times the mean of its squared entries over the prompt's keys, both after
    rotation; the `int(width · ratio)` lowest go. Xu et al. (2024, arXiv 2407.21018, ThinK) in the form of NVIDIA's
    kvpress; the paper's own norm of the channel's products is not computed.

    Chosen once, when the prompt's last token is attended from, which knows the question where the prompt ends with it.
    That query and all later ones meet the prompt's keys without those channels; the keys of decoded tokens keep theirs.
    kvpress leaves the prompt's last query the whole keys; here it is the first that answers. Where a layer sees a
    window of tokens, the keys are those that the last query sees.
    """

    ratio: float
    """Share of the channels that go, from 0 (nothing changes) to below 1; the paper takes 0.4 and 0.5, kvpress 0."""
    window: int = 32
    """The prompt's last queries, that of its last token included; kvpress' default."""

    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio < 1:
            raise UsageError(f"think_channels: ratio is at least 0 and below 1, not {self.ratio}")
        if self.window < 1:
            raise UsageError(f"think_channels: window is at least 1, not {self.window}")
        if self.phase == "prefill":
            raise UsageError(
                "think_channels: phase 'prefill' leaves nothing to change: it acts from the prompt's end on"
            )

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        _ = model
        last = LastQueries(self.window, "think_channels")
        dropped: dict[tuple[int, int], Bool[Tensor, "kv_head channel"]] = {}

        def change(here: site, sample: int, call: Call) -> Call:
            if not call.causal:
                return call
            if call.phase == "prefill":
                last.take(sample, call)
                return call
            where = call.layer, sample
            queries = last.at_the_end(sample, call)
            if queries is not None:
                dropped[where] = lowest_channels(call, queries, self.ratio)
            if not bool(dropped[where].any()):
                return call
            of_prompt = last.end(sample, call) + 1 - call.key_start
            key = call.key.clone()
            key[:, :of_prompt] = key[:, :of_prompt].masked_fill(dropped[where][:, None], 0)
            return dataclasses.replace(call, key=key, log_sum_exp=None)

        return change


def lowest_channels(
    call: Call, queries: Float[Tensor, "head query channel"], ratio: float
) -> Bool[Tensor, "kv_head channel"]:
    """Return which channels go, by these queries and the keys that a call's first query sees."""
    stop = call.query_start + 1 - call.key_start
    start = 0 if call.window is None else max(0, stop - call.window)
    energy, number = torch.zeros(call.num_kv_heads, call.key.shape[-1], dtype=torch.float64), 0
    for first in range(start, stop, BLOCK_KEYS):
        part = slice(first, min(first + BLOCK_KEYS, stop))
        squares = as_float64(call.key[:, part]).square()
        if call.key_visible is not None:
            squares = squares[:, call.key_visible[part].to(squares.device)]
        energy += squares.sum(1).cpu()
        number += squares.shape[1]
    asked = as_float64(queries).square().mean(1).unflatten(0, (call.num_kv_heads, -1)).mean(1).cpu()
    score = asked * energy / max(number, 1)
    order = score.argsort(dim=-1, stable=True)[:, : int(score.shape[-1] * ratio)]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, True).to(call.key.device)
