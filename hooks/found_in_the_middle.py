"""Attention to documents by what they say, less what their place gives them (found in the middle)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangedPhase, ChangeOfCalls
from probe.hooks.attention.document_rows import (
    DocumentRows,
    Documents,
    checked_documents,
    document_rows,
    documents_of,
    last_row,
)
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.tap import site
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.sequence.sample_read import preparing, sample_read
from probe.kernels.call import Call
from probe.kernels.score_change import Place, ScoreChange
from probe.sample import Sample

CalibrationForm = Literal["subtract", "divide", "uncalibrated"]
Pool = Literal["all", "layer", "head"]
Original = Literal["pooled", "head", "none"]
Dummies = Literal["one_at_a_time", "all_at_once"]

_LARGEST: Final = 1e4
"""Largest logarithm of a factor, either way: its exponential is zero in every dtype, and far from what masks."""
_TINY: Final = 1e-300
_COLDEST: Final = 1e-30


@dataclass(frozen=True, kw_only=True)
class found_in_the_middle(ChangeOfCalls):
    """Give each document the attention that its relevance deserves: `found_in_the_middle(dummy=["…"])(model)`.

    Hsieh et al. (2024, arXiv 2406.16008, Found in the Middle), whose code was never published. Attention to a document
    is the mean over its tokens of what one position gives them, there over all heads and layers. Relevance is attention
    to the document less that to a dummy document at its place. From the prompt's last token on, in the last half of the
    layers, a_i of a token of document k becomes (α_k / Attn(k)) · a_i · C, with α = softmax(relevance / temperature)
    over the documents and C such that the documents together keep what they had of each head's row.

    The paper leaves open, and fields choose: the dummy's text and length (`dummy`, repeated to the length of the
    document in whose place it stands; `heading_tokens`), whose attention Attn(k) is (`original`), and what answer
    tokens after the first are given (here the relevance that was measured at the prompt's last token, where `pool` is
    `all`, else that of their own row). Dividing by the dummy's attention, for a bias that multiplies, averaging by
    layer or head, all dummies at once, and redistribution without calibration are this toolkit's own.

    Documents are the sample's spans `document_0`, `document_1`, …, or `documents`. What is measured beforehand is
    measured on the model without any intervention on its attention, by forwards of its own (one for the prompt, one for
    each document), so that it needs a sample: give `dummy_attention`, `documents` and a `pool` of `layer` or `head` for
    forwards of token ids. Refused for fewer than two documents. Where all relevances are equal, documents end up with
    equal attention per token: nothing changes for those that had it, and for any with `original="none"`.
    """

    form: CalibrationForm = "subtract"
    """`subtract`: relevance is attention less the dummy's, as published. `divide`: the logarithm of attention over the
    dummy's. `uncalibrated`: attention itself, the control that sharpens and calibrates nothing."""
    temperature: float | None = None
    """Of the softmax over documents, in units of relevance; None for 5e-5 where it is attention (the paper's, on models
    whose documents have 1e-4 a token), and 1 for `divide`, where α is then in proportion to attention over dummy's."""
    dummy: Sequence[str] = ()
    """Texts of dummy documents, measured for each prompt one after the other and averaged; the paper gives none."""
    dummies: Dummies = "one_at_a_time"
    """`one_at_a_time`: a forward for each document, with the dummy in its place alone, as published. `all_at_once`: one
    forward with dummies in all places, where none draws attention from the others."""
    heading_tokens: int = 0
    """First tokens of each document that its dummy keeps, such as its number."""
    dummy_attention: Sequence[float] | None = None
    """Mean attention per token of a dummy at each place, first to last, measured before, the same for all prompts and
    layers; in place of `dummy`."""
    pool: Pool = "all"
    """Over what attention is averaged: `all` layers and heads, as published, or the heads of each `layer`, or each
    `head` by itself."""
    original: Original = "pooled"
    """Attn(k) in the factor: `pooled` as relevance is, `head`: the head's own, so that its documents have attention in
    proportion to α; `none`: 1, so that α multiplies the attention there is."""
    documents: Sequence[tuple[int, int]] | None = None
    """The documents as half-open ranges of positions; None for the sample's spans `document_0`, `document_1`, …"""
    sink_tokens: int = 4
    """First tokens of the prompt that count to no document, where a sink stands; this toolkit's."""
    layers: Sequence[int] | None = None
    """Layers in which it acts, from 0; None for the last half of those that attend (the paper: 16 of 32)."""
    phase: ChangedPhase = "decode"
    """Whether it acts on the prompt (`prefill`), from the prompt's last token on (`decode`, as published) or on both;
    a query that sees some of the documents shares out what these have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kinds in (("form", CalibrationForm), ("dummies", Dummies), ("pool", Pool), ("original", Original)):
            if getattr(self, name) not in get_args(kinds):
                raise self._error(f"{name} is {getattr(self, name)!r}; expected {', '.join(get_args(kinds))}")
        if self.temperature is not None and not _COLDEST <= self.temperature < float("inf"):
            raise self._error(f"temperature is at least {_COLDEST:g}, not {self.temperature}")
        if min(self.heading_tokens, self.sink_tokens) < 0:
            raise self._error("heading_tokens and sink_tokens are at least 0")
        if isinstance(self.dummy, str) or not all(isinstance(text, str) and text for text in self.dummy):
            raise self._error("dummy is a list of texts")
        object.__setattr__(self, "dummy", tuple(self.dummy))
        if self.dummy_attention is not None:
            given = tuple(map(float, self.dummy_attention))
            least = min(given, default=0.0)
            if len(given) < 2 or not 0 <= least <= max(given) <= 1 or (self.form == "divide" and least == 0):
                raise self._error("dummy_attention has a number from 0 to 1 for each document, above 0 to divide by")
            object.__setattr__(self, "dummy_attention", given)
        if (bool(self.dummy) + (self.dummy_attention is not None)) != (self.form != "uncalibrated"):
            raise self._error(f"form {self.form!r} takes {_TAKES[self.form == 'uncalibrated']}")
        if self.documents is not None:
            object.__setattr__(self, "documents", checked_documents(self.documents, type(self).__name__))
            self._check_places(len(self.documents))

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which `model`, wrapped or a bare transformers model, attends so."""
        return self._calibrating(transformers_model_of(model), self._dummy_tokens(model))

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"attention to documents"})

    def check(self, model: Any, sample: Sample) -> None:
        """See `Intervention.check`."""
        self._cut(self._documents(sample))
        self._dummy_tokens(model)

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        return self._change(_measured())

    @contextmanager
    def _calibrating(self, model: PreTrainedModel, dummies: list[list[int]]) -> Iterator[None]:
        measured = _measured()

        def measure(sample: Sample) -> Sample:
            whole = self._documents(sample)
            documents = self._cut(whole)
            measured.sample, measured.documents = sample, documents
            if self.pool == "all":
                measured.attention = last_row(model, sample.tokens, documents)
            if dummies:
                asked = partial(last_row, model, documents=documents)
                measured.dummies = self._of_dummies(asked, sample.tokens, whole, dummies)
            return sample

        chosen = self._chosen(model)
        with preparing(model, measure), self._acting(model, self._change(measured), chosen):
            yield

    def _of_dummies(
        self, asked: Any, tokens: Sequence[int], documents: Documents, dummies: list[list[int]]
    ) -> dict[int, Float[Tensor, "head span"]]:
        """Return the mean attention that dummies get at each document's place, by layer."""
        found: list[dict[int, Tensor]] = []
        for dummy in dummies:
            if self.dummies == "all_at_once":
                found.append(asked(_replaced(tokens, documents, dummy, self.heading_tokens)))
                continue
            each = [asked(_replaced(tokens, [one], dummy, self.heading_tokens)) for one in documents]
            found.append({at: torch.stack([e[at][:, k] for k, e in enumerate(each)], -1) for at in each[0]})
        return {at: torch.stack([each[at] for each in found]).mean(0) for at in found[0]}

    def _change(self, measured: _measured) -> Change:
        def change(here: site, sample: int, call: Call) -> Call:
            read = sample_read()
            if read is not None and measured.sample is not None:
                if (read.tokens, read.spans) != (measured.sample.tokens, measured.sample.spans):
                    raise self._error(
                        "the prompt that is read is not the one that it was measured on; enter it after what rewrites "
                        "the prompt"
                    )
                documents = measured.documents
            elif self._needs_sample() or self.documents is None:
                raise self._error(
                    "nobody said which sample is read, so that its documents could be measured; use probe.trace, or "
                    "give documents, dummy_attention and pool layer or head"
                )
            else:
                documents = self._cut(self.documents)
            rows = document_rows(call, documents)
            if int((rows.num_seen > 0).sum(-1).max()) < 2:
                return call
            factors = self._log_factors(rows, measured, call.layer)
            shares = _shared_out(documents, factors.float())
            return dataclasses.replace(call, changes=(*call.changes, shares), log_sum_exp=None)

        return change

    def _log_factors(self, rows: DocumentRows, measured: _measured, layer: int) -> Float[Tensor, "head query span"]:
        """Return the logarithm of (α_k / Attn(k)) · C for each head, row and document."""
        own, seen = rows.log_attention, rows.num_seen > 0
        device = own.device
        if self.pool == "all":
            attention = _pooled(measured.attention, layer, "all").to(device)[:, None]
        else:
            attention = own.exp() if self.pool == "head" else own.exp().mean(0, keepdim=True)
        log_attention = attention.clamp(min=_TINY).log()
        relevance = attention
        if self.form != "uncalibrated":
            if self.dummy_attention is None:
                dummy = _pooled(measured.dummies, layer, self.pool).to(device)[:, None]
            else:
                dummy = torch.tensor(self.dummy_attention, dtype=torch.float64, device=device)
            subtracts = self.form == "subtract"
            relevance = attention - dummy if subtracts else log_attention - dummy.clamp(min=_TINY).log()
        temperature = (1.0 if self.form == "divide" else 5e-5) if self.temperature is None else self.temperature
        # A document that the row does not see has no share; a row that sees none has nothing to share out.
        some = seen.any(-1, keepdim=True)
        log_alpha = (relevance / temperature).expand_as(own).masked_fill(~seen & some, -torch.inf).log_softmax(-1)
        before = {"pooled": log_attention, "head": own, "none": torch.zeros_like(own)}[self.original]
        factor = (log_alpha - before).masked_fill(~seen, 0).clamp(-_LARGEST, _LARGEST)
        mass = rows.log_mass.masked_fill(~some, 0)
        kept = mass.logsumexp(-1, keepdim=True) - (mass + factor).logsumexp(-1, keepdim=True)
        return (factor + kept).masked_fill(~seen, 0).clamp(-_LARGEST, _LARGEST)

    def _chosen(self, model: PreTrainedModel) -> dict[int, Bool[Tensor, "head"] | None]:
        chosen = super()._chosen(model)
        if self.layers is not None or self.heads is not None:
            return chosen
        every = sorted(chosen)
        return {layer: chosen[layer] for layer in every[len(every) // 2 :]}

    def _documents(self, sample: Sample) -> Documents:
        who = type(self).__name__
        found = documents_of(sample, who) if self.documents is None else checked_documents(self.documents, who)
        if found[-1][1] > len(sample):
            raise self._error(f"documents end at {found[-1][1]}, and sample {sample.name!r} has {len(sample)} tokens")
        self._check_places(len(found))
        return found

    def _cut(self, documents: Sequence[tuple[int, int]]) -> Documents:
        cut = tuple((max(start, self.sink_tokens), stop) for start, stop in documents)
        if empty := [stop for start, stop in cut if stop <= start]:
            raise self._error(f"a document ends at {empty[0]}, within the first sink_tokens ({self.sink_tokens})")
        return cut

    def _check_places(self, number: int) -> None:
        if self.dummy_attention is not None and len(self.dummy_attention) != number:
            raise self._error(f"dummy_attention has {len(self.dummy_attention)} numbers for {number} documents")

    def _needs_sample(self) -> bool:
        return self.pool == "all" or bool(self.dummy)

    def _dummy_tokens(self, model: Any) -> list[list[int]]:
        if not self.dummy:
            return []
        tokenizer = getattr(model, "tokenizer", None)
        if tokenizer is None:
            name = name_of(transformers_model_of(model))
            raise self._error(f"dummy is text, and {name} brings no tokenizer; load it, or give dummy_attention")
        found = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in self.dummy]
        if not all(found):
            raise self._error("dummy has a text of no tokens")
        return [list(ids) for ids in found]

    def _error(self, message: str) -> UsageError:
        return UsageError(f"{type(self).__name__}: {message}")


_TAKES: Final = {False: "dummy or dummy_attention, one of them", True: "neither dummy nor dummy_attention"}


@dataclass(eq=False)
class _measured:
    """What was measured of the sample that is about to be read, by layer."""

    sample: Sample | None = None
    documents: Documents = ()
    attention: dict[int, Float[Tensor, "head span"]] = field(default_factory=dict)
    dummies: dict[int, Float[Tensor, "head span"]] = field(default_factory=dict)


def _pooled(attention: dict[int, Tensor], layer: int, pool: Pool) -> Float[Tensor, "*head span"]:
    if pool == "head":
        return attention[layer]
    every = torch.cat(list(attention.values())) if pool == "all" else attention[layer]
    return every.mean(0, keepdim=True)


def _replaced(tokens: Sequence[int], places: Sequence[tuple[int, int]], dummy: list[int], heading: int) -> list[int]:
    """Return a prompt with a dummy, repeated to their length, in the place of some documents."""
    made = list(tokens)
    for start, stop in places:
        first = min(start + heading, stop)
        made[first:stop] = itertools.islice(itertools.cycle(dummy), stop - first)
    return made


@dataclass(frozen=True, eq=False)
class _shared_out(ScoreChange):
    """Adds to the logits of each document's keys the logarithm of its factor."""

    documents: Documents
    log_factor: Float[Tensor, "head query span"]

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        for index, (start, stop) in enumerate(self.documents):
            first = max(start - place.key_start, 0)
            last = min(stop - place.key_start, place.num_keys)
            if first < last:
                logits[..., first:last] += self.log_factor[:, place.rows, index, None].to(logits)
        return logits
