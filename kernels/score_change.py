"""What an intervention makes of the logits of a call, a block at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from probe.kernels.call import Call

MASKED = -1e30
"""Stands for a logit that the mask hides. Finite, so that 0 · log 0 needs no care: exp(MASKED) is zero, and zero times
MASKED is zero; an infinity or a NaN that the model itself made stays visible."""


@dataclass(frozen=True, eq=False)
class Place:
    """Which of a call's queries and keys a block of logits is about; positions are the sample's."""

    call: Call
    """The call, its tensors as they are attended with."""
    query_start: int
    """Position of the block's first query."""
    num_queries: int
    """Queries in the block."""
    key_start: int
    """Position of the block's first key."""
    num_keys: int
    """Keys in the block."""

    @property
    def query_stop(self) -> int:
        """Position after the block's last query."""
        return self.query_start + self.num_queries

    @property
    def key_stop(self) -> int:
        """Position after the block's last key."""
        return self.key_start + self.num_keys

    @property
    def query_position(self) -> Int[Tensor, "query"]:
        """Positions of the queries, on the call's device."""
        return torch.arange(self.query_start, self.query_stop, device=self.call.query.device)

    @property
    def key_position(self) -> Int[Tensor, "key"]:
        """Positions of the keys, on the call's device."""
        return torch.arange(self.key_start, self.key_stop, device=self.call.query.device)

    @property
    def distance(self) -> Int[Tensor, "query key"]:
        """Query position minus key position."""
        return self.query_position[:, None] - self.key_position[None, :]

    @property
    def rows(self) -> slice:
        """Where the block's queries are among the call's."""
        first = self.query_start - self.call.query_start
        return slice(first, first + self.num_queries)

    @property
    def columns(self) -> slice:
        """Where the block's keys are among the call's."""
        first = self.key_start - self.call.key_start
        return slice(first, first + self.num_keys)


class ScoreChange(ABC):
    """Changes logits that no other field of a `Call` can: what is hidden from whom, or another product of vectors.

    It is asked block by block, in any order and by any engine, and its answer for a query and a key may depend on
    nothing but the two. The block's size is not its to choose; whatever it holds grows linearly with the prompt.
    """

    @abstractmethod
    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        """Return the logits that take the place of these, in their dtype; they may be written to.

        They are scaled, capped, and biased by distance, and not yet masked: what the call hides stays hidden whatever
        comes back. `MASKED` hides a key. A query must be left at least one of the keys that it sees.
        """
