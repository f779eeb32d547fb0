"""Logits that another call has at the same place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.kernels.call import Call
from probe.kernels.score_change import Place, ScoreChange
from probe.kernels.scores import Scores


@dataclass(frozen=True, eq=False)
class OtherLogits(ScoreChange):
    """Puts the logits of another call in the place of the call's own, capped and biased as that call says."""

    scores: Scores
    """The other call's."""

    @classmethod
    def of(cls, call: Call) -> OtherLogits:
        """Return the change to what `call` has before any `ScoreChange`; its key-value heads may be other ones."""
        return cls(Scores(dataclasses.replace(call, changes=(), log_sum_exp=None)))

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        """See `ScoreChange`."""
        query = self.scores.query(place.query_start, place.query_stop)
        key = self.scores.key(place.key_start, place.key_stop)
        out = torch.empty(len(query), query.shape[1], key.shape[1], device=query.device)
        return self.scores.logits(query, key, place.query_start, place.key_start, out).to(logits.dtype)
