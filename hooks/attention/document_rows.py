"""How much of a row's attention each document of a prompt gets, in logarithms, and which documents a sample has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.rotation_of_whole import rotated_as_whole
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import tap
from probe.hooks.sequence.decoding import advance, empty_state
from probe.hooks.sequence.prefill import prefill
from probe.kernels.call import Call
from probe.kernels.exact import exact
from probe.kernels.score_change import MASKED
from probe.kernels.walk import Walk
from probe.sample import Sample, Span

Documents = tuple[tuple[int, int], ...]
"""Half-open ranges of token positions, in the order of the prompt."""

_DOCUMENT: Final = re.compile(r"document_\d+")
_CHUNK_TOKENS: Final = 2048


class DocumentRows(NamedTuple):
    """What rows of attention give to documents, in float64."""

    log_mass: Float[Tensor, "head query span"]
    """log Σ_j p_ij over the tokens of each document that the query sees; −inf where it sees none."""
    num_seen: Int[Tensor, "head query span"]
    """Tokens of each document that the query sees."""

    @property
    def log_attention(self) -> Float[Tensor, "head query span"]:
        """log of the mean attention per token of each document; −inf where the query sees none of it."""
        return self.log_mass - self.num_seen.clamp(min=1).log()


def is_document(span: Span) -> bool:
    """Return whether a span is one of `document_0`, `document_1`, …"""
    return _DOCUMENT.fullmatch(span.name) is not None


def documents_of(sample: Sample, who: str, fewest: int = 2) -> Documents:
    """Return the ranges of a sample's spans `document_0`, `document_1`, … in the order of the prompt.

    Raises `UsageError`, naming the intervention `who` and the sample, where there are fewer than `fewest`.
    """
    found = sorted((span.start, span.stop) for span in sample.spans if is_document(span) and len(span))
    if len(found) < fewest:
        raise UsageError(
            f"{who}: sample {sample.name!r} has {len(found)} spans document_0, document_1, …; at least {fewest} are "
            "needed (give `documents`, or read a workload that marks them)"
        )
    return checked_documents(found, who, fewest)


def checked_documents(documents: Sequence[Sequence[int]], who: str, fewest: int = 2) -> Documents:
    """Return ranges as tuples in order; raises `UsageError` for such as are empty, overlap, or are fewer than asked."""
    try:
        found = tuple(sorted((int(start), int(stop)) for start, stop in documents))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{who}: documents are ranges [first, stop) of positions: {error}") from error
    bounds = [bound for document in found for bound in document]
    if len(found) < fewest or bounds[0] < 0 or bounds != sorted(bounds) or any(a == b for a, b in found):
        raise UsageError(
            f"{who}: documents are at least {fewest} ranges [first, stop) that do not overlap, not {list(found)}"
        )
    return found


def document_rows(call: Call, documents: Documents) -> DocumentRows:
    """Return what every query of a call gives to each document, going over its keys block by block.

    What it returns grows with queries × documents. A document whose keys are not there, or hidden from a query, has
    nothing of it.
    """
    shape = call.num_heads, call.num_queries, len(documents)
    log_mass = torch.full(shape, -torch.inf, dtype=torch.float64, device=call.query.device)
    num_seen = torch.zeros(shape, dtype=torch.long, device=call.query.device)
    with exact(call.query.device):
        for normaliser, blocks in Walk().over(call):
            first = normaliser.query_start - call.query_start
            for block in blocks:
                rows = slice(first, first + block.probability.shape[1])
                for index, (start, stop) in enumerate(documents):
                    keys = block.keys_between(start, stop)
                    if keys.start == keys.stop:
                        continue
                    part = block.log_probability[..., keys].double()
                    seen = part > MASKED / 2
                    mass = part.masked_fill(~seen, -torch.inf).logsumexp(-1)
                    log_mass[:, rows, index] = torch.logaddexp(log_mass[:, rows, index], mass)
                    num_seen[:, rows, index] += seen.sum(-1)
    return DocumentRows(log_mass, num_seen)


@torch.no_grad()
def last_row(
    model: PreTrainedModel, tokens: Sequence[int], documents: Documents
) -> dict[int, Float[Tensor, "head span"]]:
    """Return the mean attention per token that each document gets from the prompt's last position, by layer.

    In float64 on the CPU, of the model without any intervention on its attention. The prompt goes through it in chunks,
    its last token by itself, as where it is read for its answer.
    """
    reader = _of_last_row(len(tokens) - 1, documents)
    state = empty_state(model)
    with attached(model, reader, alone=True), rotated_as_whole(model, len(tokens)):
        prefill(model, state, tokens[:-1], chunk_tokens=_CHUNK_TOKENS, on_logits=None)
        advance(model, state, tokens[-1:], phase="decode", all_logits=True)
    return reader.found


class _of_last_row(tap):
    wants_calls = True

    def __init__(self, position: int, documents: Documents) -> None:
        self.position, self.documents = position, documents
        self.found: dict[int, Tensor] = {}

    def call(self, sample: int, call: Call) -> None:
        if call.query_start == self.position:
            self.found[call.layer] = document_rows(call, self.documents).log_attention[:, 0].exp().cpu()
