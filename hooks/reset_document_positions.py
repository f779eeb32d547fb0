"""Document positions reset: every document stands where the first one does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change
from probe.hooks.attention.change_of_positions import ChangeOfPositions, refuse_packed
from probe.hooks.attention.rotation import Rotation, rotations
from probe.hooks.attention.tap import site
from probe.hooks.attention.turner import Turner, turners
from probe.hooks.sequence.sample_read import sample_read
from probe.kernels.call import Call
from probe.kernels.score_change import MASKED, Place, ScoreChange
from probe.sample import Sample


@dataclass(frozen=True)
class reset_document_positions(ChangeOfPositions):
    """Give all documents of a prompt the same positions: `with reset_document_positions()(model):`.

    Every document begins at the position at which the first one does; what stands between two documents goes on from
    the one before it; what follows the last document follows the longest one. With `apart`, documents do not see each
    other either, as in parallel context windows (Ratner et al. 2023, arXiv 2212.10947, section 3), whose windows these
    are: no document is then nearer to the question than another. Without it, tokens see documents before theirs at
    distances that may be negative, which no training has shown them.

    A sample's documents are its spans `document_N`, so it acts on samples that are read, or on spans that are given.
    Refused where there are none, for a model without rotary positions, and for documents packed into one sequence.
    """

    apart: bool = True
    """Whether documents are hidden from each other."""
    documents: Sequence[tuple[int, int]] | None = None
    """The documents as half-open ranges of positions, for prompts that are nobody's sample; None for the sample's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.documents is None:
            return
        try:
            documents = tuple(sorted((int(start), int(stop)) for start, stop in self.documents))
        except (TypeError, ValueError) as error:
            raise UsageError(f"reset_document_positions: documents are ranges [first, stop): {error}") from error
        bounds = [bound for document in documents for bound in document]
        if not documents or bounds[0] < 0 or bounds != sorted(bounds) or any(a == b for a, b in documents):
            raise UsageError(f"reset_document_positions: documents are ranges that do not overlap, not {documents}")
        object.__setattr__(self, "documents", documents)

    def check(self, model: object, sample: Sample) -> None:
        """See `Intervention.check`."""
        super().check(model, sample)
        self._documents(sample)

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        of_layer = rotations(model, 1, "reset_document_positions")
        known = dict[tuple[tuple[int, int], ...], tuple[dict[int, Turner], _apart]]()

        def change(here: site, sample: int, call: Call) -> Call:
            refuse_packed(call, "reset_document_positions")
            documents = self._documents(sample_read())
            if documents not in known:
                known.clear()
                known[documents] = _moved(of_layer, documents), _apart(documents)
            turn, apart = known[documents]
            if call.layer in turn:
                query = turn[call.layer](call.query, call.query_start)
                key = turn[call.layer](call.key, call.key_start)
                call = dataclasses.replace(call, query=query, key=key, log_sum_exp=None)
            if self.apart:
                call = dataclasses.replace(call, changes=(*call.changes, apart), log_sum_exp=None)
            return call

        return change

    def _documents(self, sample: Sample | None) -> tuple[tuple[int, int], ...]:
        if self.documents is not None:
            return tuple(self.documents)
        if sample is None:
            raise UsageError(
                "reset_document_positions: nobody said which sample is read; give documents, or use probe.trace"
            )
        found = sorted((s.start, s.stop) for s in sample.spans if re.fullmatch(r"document_\d+", s.name))
        if not found:
            raise UsageError(f"reset_document_positions: {sample.name} has no spans document_0, document_1, …")
        return tuple(found)


def _moved(of_layer: dict[int, Rotation], documents: tuple[tuple[int, int], ...]) -> dict[int, Turner]:
    first = documents[0][0]
    starts = torch.tensor([start for start, _ in documents])
    stops = [start for start, _ in documents[1:]] + [documents[-1][1]]
    longest = max(stop - int(start) for start, stop in zip(starts, stops, strict=True))
    end = documents[-1][1]

    def moved(position: Float[Tensor, "token"]) -> Float[Tensor, "token"]:
        own = starts[(torch.searchsorted(starts, position.long(), right=True) - 1).clamp(min=0)]
        inside = first + position - own
        outside = torch.where(position < first, position, position - end + first + longest)
        return torch.where((position >= first) & (position < end), inside, outside)

    return turners(of_layer, moved)


@dataclass(frozen=True, eq=False)
class _apart(ScoreChange):
    """A document, with what stands between it and the next, sees no other."""

    documents: tuple[tuple[int, int], ...]

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        query, key = self._document(place.query_position), self._document(place.key_position)
        if not bool((query >= 0).any()):
            return logits
        hidden = (query[:, None] >= 0) & (key >= 0) & (query[:, None] != key)
        return logits.masked_fill_(hidden, MASKED)

    def _document(self, position: Int[Tensor, "token"]) -> Int[Tensor, "token"]:
        """Return the number of the document at each position; −1 before the first and after the last."""
        starts = torch.tensor([start for start, _ in self.documents], device=position.device)
        found = torch.searchsorted(starts, position, right=True) - 1
        return found.masked_fill(position >= self.documents[-1][1], -1)
