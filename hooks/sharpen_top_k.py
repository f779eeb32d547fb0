"""Attention to the few largest logits alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.tap import site
from probe.kernels.call import Call
from probe.kernels.exact import exact
from probe.kernels.score_change import MASKED, Place, ScoreChange
from probe.kernels.scores import Scores

_TIE = 1e-5
_BLOCK = 128, 4096
"""Queries and keys that are looked at at once."""


@dataclass(frozen=True)
class sharpen_top_k(ChangeOfCalls):
    """Keep the `k` largest logits of each row and hide the others: `with sharpen_top_k(8)(model):`.

    Gupta et al. (2021, arXiv 2106.06899, top-k attention), on a model that was not trained so. The softmax is over what
    is kept. Keys whose logit equals the k-th largest all stay, so that more than k may; as equal count logits that
    differ by less than 1e-5 (1e-5 of the k-th one where it is above 1), since another order of summation makes as
    much of a difference. A learned sink's logit is none of the k. The k-th largest logits are found block by block, in
    memory linear in the tokens; the scores are read once more for it.
    """

    k: int
    """How many keys a row keeps; a row that sees no more is left as it is. No default: it is the field to be tuned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise UsageError(f"sharpen_top_k: k is at least 1, not {self.k}")

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""

        def change(here: site, sample: int, call: Call) -> Call:
            if call.num_keys <= self.k:
                return call
            kept = _at_least(_kth_largest(call, self.k))
            return dataclasses.replace(call, changes=(*call.changes, kept), log_sum_exp=None)

        return change


def _kth_largest(call: Call, k: int) -> Float[Tensor, "head query"]:
    """The k-th largest logit of each row, less what counts as equal; `MASKED` or less where a row has no k keys."""
    found = torch.empty(call.num_heads, call.num_queries, device=call.query.device)
    with exact(call.query.device):
        scores = Scores(call)
        for start in range(call.query_start, scores.query_stop, _BLOCK[0]):
            stop = min(start + _BLOCK[0], scores.query_stop)
            query, (first, last) = scores.query(start, stop), scores.visible_keys(start, stop)
            largest = query.new_full((call.num_heads, stop - start, k), MASKED)
            for cut in range(first, last, _BLOCK[1]):
                key = scores.key(cut, min(cut + _BLOCK[1], last))
                logits = scores.logits(query, key, start, cut, query.new_empty(*query.shape[:2], key.shape[1]))
                largest = torch.cat([largest, logits.clamp_(min=MASKED)], -1).topk(k, sorted=False).values
            found[:, start - call.query_start : stop - call.query_start] = largest.amin(-1)
    return found - _TIE * found.abs().clamp(min=1)


@dataclass(frozen=True, eq=False)
class _at_least(ScoreChange):
    least: Float[Tensor, "head query"]

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        return logits.masked_fill_(logits < self.least[:, place.rows, None].to(logits), MASKED)
