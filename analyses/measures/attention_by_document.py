"""How much attention each document of a prompt gets from the row that answers, per token, and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from probe.errors import UsageError
from probe.selection import LeftOut, depth, fact, length, reads_the_text

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]

_DOCUMENT: Final = re.compile(r"document_(\d+)")
FEWEST_QUADRUPLETS: Final = 3
"""Pairs of documents at pairs of places below which a rank correlation says nothing."""


@dataclass(frozen=True)
class Documents:
    """One prompt's documents: where each stands, and the attention that it gets."""

    prompt: str
    """Name of the sample, the same under every condition."""
    unit: str
    length: int
    given: str
    """What the prompt held: `all` its documents, `all_dummies`, …"""
    turned: int
    """By how many places its documents were moved round."""
    attention: Floats
    """Mean attention per token of each document, over layers and heads, `[document]` in the order of the prompt; NaN
    where the document holds the sink's place."""
    gold: int | None
    """Index of the document that holds the answer; None where none does."""
    correct: bool | None
    """Whether the answer was right; None where that is not known."""

    @property
    def places(self) -> Floats:
        """Place of each document, from 0 (first) to 1 (last)."""
        return np.linspace(0.0, 1.0, len(self.attention))


def documents_of(
    traces: Sequence[Trace], heads: Sequence[Sequence[int]] | None, sink_tokens: int, left_out: LeftOut
) -> list[Documents]:
    """Return the documents of each trace that holds `span_mass` and two documents or more; the others are counted.

    Document attention (Hsieh et al. 2024, arXiv 2406.16008): the mean over a document's tokens of the attention from
    the row that produces the first answer token, averaged over all layers and heads, or over `heads`. A document that
    reaches into the first `sink_tokens` tokens has none.
    """
    found = []
    for trace in traces:
        made = _documents(trace, heads, sink_tokens, left_out)
        if made is not None:
            found.append(made)
    return found


def _documents(
    trace: Trace, heads: Sequence[Sequence[int]] | None, sink_tokens: int, left_out: LeftOut
) -> Documents | None:
    spans = {int(match[1]): span for span in trace.sample.spans if (match := _DOCUMENT.fullmatch(span.name))}
    if trace.outcome is not None and trace.outcome.failed:
        left_out.add("the unit failed")
        return None
    if "span_mass" not in trace or not reads_the_text(trace) or trace["span_mass"].sizes["row"] == 0:
        left_out.add("no attention to documents was captured")
        return None
    if len(spans) < 2:
        left_out.add("fewer than two documents are marked in the text")
        return None
    array = trace["span_mass"].isel(row=0).transpose("layer", "head", "span")
    names = [str(name) for name in array["span"].to_numpy()]
    order = sorted(spans)
    if missing := [f"document_{at}" for at in order if f"document_{at}" not in names]:
        left_out.add(f"the attention to some documents is missing ({missing[0]}, …)")
        return None
    mass = array.to_numpy().astype(np.float64)[..., [names.index(f"document_{at}") for at in order]]
    mass = _chosen(mass, heads)
    if not np.isfinite(mass).all():
        left_out.add("attention that is not a number")
        return None
    tokens = np.array([max(1, len(spans[at])) for at in order])
    attention = mass.mean(axis=0) / tokens
    # A sink's attention says nothing of what a document says.
    attention[[spans[at].start < sink_tokens for at in order]] = np.nan
    gold = fact(trace, "gold_index")
    given = str(fact(trace, "given") or "all")
    return Documents(
        prompt=trace.sample.name,
        unit=trace.unit,
        length=length(trace),
        given=given,
        turned=int(fact(trace, "turned_places") or 0),
        attention=attention,
        gold=order.index(int(gold)) if given == "all" and gold is not None and int(gold) in order else None,
        correct=None if trace.outcome is None else trace.outcome.correct,
    )


@dataclass(frozen=True)
class GoldAttention:
    """What one prompt's answer in the text gets, per token of it, and where it stands."""

    prompt: str
    unit: str
    length: int
    place: float
    attention: float


def gold_attention(
    traces: Sequence[Trace], heads: Sequence[Sequence[int]] | None, sink_tokens: int
) -> list[GoldAttention]:
    """Return the attention to the span `needle` of each trace that has it, and says at which depth it stands."""
    found = []
    for trace in traces:
        where = depth(trace)
        spans = {span.name: span for span in trace.sample.spans}
        if where is None or "needle" not in spans or "span_mass" not in trace or not reads_the_text(trace):
            continue
        array = trace["span_mass"]
        if array.sizes["row"] == 0 or "needle" not in [str(name) for name in array["span"].to_numpy()]:
            continue
        mass = array.isel(row=0).sel(span=["needle"]).transpose("layer", "head", "span").to_numpy().astype(np.float64)
        value = float(_chosen(mass, heads).mean()) / max(1, len(spans["needle"]))
        if np.isfinite(value) and spans["needle"].start >= sink_tokens:
            found.append(GoldAttention(trace.sample.name, trace.unit, length(trace), where, value))
    return found


def _chosen(mass: Floats, heads: Sequence[Sequence[int]] | None) -> Floats:
    """Return the attention of the heads that were asked for, `[head document]`."""
    if heads is None:
        return mass.reshape(-1, mass.shape[-1])
    outside = [tuple(at) for at in heads if not (0 <= at[0] < mass.shape[0] and 0 <= at[1] < mass.shape[1])]
    if outside or not len(heads):
        raise UsageError(f"heads {outside}: the model has {mass.shape[0]} layers of {mass.shape[1]} heads")
    return np.array([mass[at[0], at[1]] for at in heads])


def rank_of_gold(score: Floats, gold: int) -> int | None:
    """Return the gold's place among the documents by score, from 1; a tie counts against it. None where it has none."""
    if not np.isfinite(score[gold]):
        return None
    others = np.delete(score, gold)
    return 1 + int((others[np.isfinite(others)] >= score[gold]).sum())


def rank_correlation(turned: Sequence[Documents], *, logarithmic: bool) -> tuple[float, int] | None:
    """Return how well a document's lead over another at one place says its lead at another place, and of how many.

    `turned` is one prompt with its documents at several places. Over pairs of documents (i, j) and pairs of places (k,
    l) that all four were seen at: Spearman between Attn(i, k) - Attn(j, k) and Attn(i, l) - Attn(j, l), both orders of
    i and j taken, so that no order of theirs is chosen. It is 1 where attention is relevance plus bias; `logarithmic`
    compares ratios, for relevance times bias. None where there are too few, or no differences.
    """
    number = len(turned[0].attention)
    seen = np.full((number, number), np.nan)
    for each in turned:
        if len(each.attention) != number:
            return None
        # What stands at a place now stood so many places before.
        seen[(np.arange(number) - each.turned) % number, np.arange(number)] = each.attention
    if logarithmic:
        seen = np.log(np.where(seen > 0, seen, np.nan))
    leads = np.array([*_quadruplets(seen)])
    if len(leads) < FEWEST_QUADRUPLETS or (np.ptp(leads, axis=0) == 0).any():
        return None
    first, second = leads.T
    value = stats.spearmanr(np.concatenate([first, -first]), np.concatenate([second, -second])).statistic
    return float(value), len(first)


def _quadruplets(seen: Floats) -> Iterator[tuple[float, float]]:
    """Yield a document's lead over another at two places, of `seen [document place]`."""
    known = np.isfinite(seen)
    for i, j in combinations(range(len(seen)), 2):
        both = np.flatnonzero(known[i] & known[j])
        lead = seen[i, both] - seen[j, both]
        for k, l in combinations(range(len(both)), 2):
            yield float(lead[k]), float(lead[l])
