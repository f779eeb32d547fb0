"""Whether attention to a document depends on where it stands, whatever it says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import JsonValue

from probe.analyses.figures.document_attention import attention_figures
from probe.analyses.measures.attention_by_document import Documents, documents_of, gold_attention
from probe.analyses.measures.attention_profile import DRAWS, AttentionProfile, of_equal_documents, of_the_gold
from probe.analyses.measures.ends_and_middle import NUMBERS
from probe.analyses.measures.gold_recall import by_attention, correlations, recalls, recalls_by_place
from probe.analysis import analysis
from probe.finding import Comparison, Finding, Interval, Measurement, Suggestion, Verdict
from probe.intervals import cluster_bootstrap, p_text
from probe.selection import LeftOut, fact, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Does attention to a document depend on where it stands, whatever it says?"
SOURCE = (
    "Document attention, dummy documents, attention = relevance + bias, calibration by subtracting: Hsieh et al. 2024, "
    "Found in the Middle, arXiv 2406.16008, sections 2-3; primacy, recency, U, calibration by dividing and dummies in "
    "one prompt: this toolkit's own"
)
ALPHA = 0.01
"""Largest p-value that supports a U."""


@analysis(question=QUESTION, source=SOURCE, needs={"span_mass": {}})
def document_attention(
    run: Run | Trace | Iterable[Trace],
    *,
    heads: Sequence[Sequence[int]] | None = None,
    sink_tokens: int = 4,
    margin: float = 0.1,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Measure attention by place at fixed relevance, and whether taking it off finds the gold.

    A document's attention is the mean over its tokens of what the row that produces the first answer token gives them,
    over all layers and heads or over `heads` ([[layer, head], …]). A document that reaches into the first `sink_tokens`
    tokens, where a sink stands, is left out. Relevance is fixed where all documents say the same: in prompts of dummies
    alone (`given: all_dummies`). Where none were read it is the documents that do not answer, else the gold at its
    several places, and the finding says which. Over each prompt's profile, relative to its mean, primacy is the first
    place less the mean of the inner ones, recency the last less that mean, and U the mean of the two (this toolkit's
    own).

    Supported: primacy and recency lie above `margin` (0.1: a tenth of the mean attention) with 97.5 % certainty each,
    and above what shuffled places give with p < 0.01. Refuted: one of them lies below `margin` with that certainty.

    Beside it: Recall@1 and @3 of the gold among the documents by attention as it is, less the dummy's at the same place
    (the paper's calibration), and divided by it (for bias that multiplies; this toolkit's own). The paper puts a dummy
    into the same prompt at one place after another; here one prompt holds dummies at all places. And, where documents
    were read at several places (`turned`): the mean over prompts of the rank correlation of a document's lead over
    another at one place with that at another place, which is 1 where attention is relevance plus bias (times bias, for
    the logarithms').

    Where it is supported, and dummies were read at one length, it suggests `found_in_the_middle` with what they got.

    What it does not mean: attention is not use: that the model answers by it is not shown here, nor that answers in the
    middle are lost (`lost_in_the_middle`). Refuted says that one end is not ahead by the margin; there may be a bias of
    another shape.
    """
    left_out = LeftOut()
    traces = selected(run, role=None, half=half)
    prompts = documents_of([t for t in traces if _is_attended(t)], heads, sink_tokens, left_out)
    golds = gold_attention([t for t in traces if _is_whole(t)], heads, sink_tokens)
    asked = [each for each in prompts if each.given == "all"]
    dummies = [each for each in prompts if each.given == "all_dummies"]
    profiles = [
        profile
        for profile in (
            of_equal_documents(dummies, "equal dummy documents", lambda each: np.ones(len(each.attention), bool), seed),
            of_equal_documents(
                [each for each in asked if each.turned == 0],
                "documents that do not answer",
                lambda each: np.arange(len(each.attention)) != (-1 if each.gold is None else each.gold),
                seed,
            ),
            of_the_gold(golds, seed),
        )
        if profile is not None
    ]
    said: dict[str, Any] = {
        "analysis": "document_attention",
        "question": QUESTION,
        "definition": "Attention per token at fixed relevance: mean of the first and the last place, less the mean of "
        "the inner places, in units of the mean over all (this toolkit's own).",
        "source": SOURCE,
        "parameters": {
            "heads": None if heads is None else [[int(index) for index in head] for head in heads],
            "sink_tokens": sink_tokens,
            "margin": margin,
            "half": half,
            "seed": seed,
        },
        "evidence": tuple(each.unit for each in prompts) or tuple(gold.unit for gold in golds),
        "columns": _COLUMNS,
        "table": tuple(_rows(asked, dummies, seed)) or tuple(_gold_rows(profiles)),
        "figures": tuple(attention_figures(profiles, asked, dummies)),
    }
    details = (
        *_details(profiles[1:]),
        *_by_length(dummies, seed),
        *recalls(asked, dummies),
        *correlations(asked, seed),
        *by_attention(asked),
    )
    if not profiles:
        return Finding(
            **said,
            headline="Whether attention depends on the place cannot be told",
            claim=_unmeasured(prompts, len(golds)),
            verdict="inconclusive",
            measured=Measurement(name=_U, value=None, n=len(prompts), dropped=left_out.total),
            details=details,
            notes=left_out.notes(),
        )
    suggests = () if heads is not None else tuple(_suggested(dummies, sink_tokens))
    return _finding(said, profiles, left_out, margin, details, suggests)


_U = "U of attention at fixed relevance (this toolkit's own)"
_COLUMNS = (
    "length_tokens",
    "place",
    "num_gold",
    "gold_attention",
    "num_others",
    "others_attention",
    "num_dummies",
    "dummy_attention",
    "dummy_low",
    "dummy_high",
    "recall_1_raw",
    "recall_1_subtracted",
    "recall_1_divided",
    "recall_3_raw",
    "recall_3_subtracted",
    "recall_3_divided",
)


def _given(trace: Trace) -> str:
    return str(trace.sample.facts.get("given") or "all")


def _is_whole(trace: Trace) -> bool:
    """Return whether a trace is of a whole prompt as it was written: nothing left out, moved round or intervened in."""
    return not trace.facts.get("intervention") and _given(trace) == "all" and not fact(trace, "turned_places")


def _is_attended(trace: Trace) -> bool:
    """Return whether a trace is of documents, or of dummies, at any places; one that was read for its answer alone,
    without any statistic, is no part of the question."""
    known = _given(trace) in ("all", "all_dummies") and len(trace.dataset.data_vars) > 0
    return known and not trace.facts.get("intervention")


def _rows(asked: Sequence[Documents], dummies: Sequence[Documents], seed: int) -> Iterator[tuple[JsonValue, ...]]:
    recall = recalls_by_place(asked, dummies)
    places = sorted({(e.length, p) for e in (*asked, *dummies) for p in e.places.round(4).tolist()})
    for at, place in places:
        gold: list[tuple[str, float]] = []
        others: list[tuple[str, float]] = []
        same: list[tuple[str, float]] = []
        for each in (*asked, *dummies):
            if each.length != at:
                continue
            for index in np.flatnonzero(each.places.round(4) == place).tolist():
                value = float(each.attention[index])
                if not np.isfinite(value):
                    continue
                kind = same if each.given == "all_dummies" else gold if index == each.gold else others
                kind.append((each.prompt, value))
        interval = cluster_bootstrap([v for _, v in same], [name for name, _ in same], seed=seed) if same else None
        numbers = [len(gold), _mean(gold), len(others), _mean(others), len(same), _mean(same)]
        ends = [None, None] if interval is None else [interval.low, interval.high]
        shown = [None if x is None else float(f"{x:.4g}") for x in (*numbers, *ends)]
        yield (at, place, *shown, *recall.get((at, place), (None,) * 6))


def _gold_rows(profiles: Sequence[AttentionProfile]) -> Iterator[tuple[JsonValue, ...]]:
    """Yield rows for texts without documents: the gold alone, relative to its mean over places."""
    for profile in profiles:
        for place, value in profile.by_place:
            yield (None, place, profile.n, float(f"{value:.4g}"), *(None,) * (len(_COLUMNS) - 4))


def _mean(values: Sequence[tuple[str, float]]) -> float | None:
    return float(np.mean([value for _, value in values])) if values else None


def _suggested(dummies: Sequence[Documents], sink_tokens: int) -> Iterator[Suggestion]:
    """Yield the calibration by what dummies got, where they were read at one length with one number of places."""
    alike = {(each.length, len(each.attention)) for each in dummies}
    if len(alike) != 1:
        return
    bias = np.mean([each.attention for each in dummies], axis=0)
    if np.isfinite(bias).all():
        yield Suggestion(
            intervention="found_in_the_middle",
            fields={"dummy_attention": [float(f"{value:.6g}") for value in bias], "sink_tokens": sink_tokens},
            reason="Attention follows the place of a document whatever it says: what a dummy gets there can be taken "
            f"off (mean over {len(dummies)} prompts of dummies).",
        )


def _details(profiles: Sequence[AttentionProfile], where: str = "") -> Iterator[Measurement]:
    for profile in profiles:
        for name in NUMBERS:
            yield Measurement(
                name=f"{name}, {profile.what}{where}",
                value=profile.values[name],
                unit="of the mean",
                interval=profile.intervals.get(name),
                n=profile.n,
            )


def _by_length(dummies: Sequence[Documents], seed: int) -> Iterator[Measurement]:
    lengths = sorted({each.length for each in dummies})
    for at in lengths if len(lengths) > 1 else ():
        here = [each for each in dummies if each.length == at]
        every = of_equal_documents(here, "equal dummy documents", lambda each: np.ones(len(each.attention), bool), seed)
        yield from _details([] if every is None else [every], f", at {at:,} tokens")


def _unmeasured(prompts: Sequence[Documents], num_golds: int) -> str:
    if prompts:
        return (
            "Too few prompts hold three equally relevant documents, so it cannot be told whether attention depends on "
            f"the place (n = {len(prompts)} prompt{'' if len(prompts) == 1 else 's'}; five are needed)."
        )
    if num_golds:
        return (
            "No prompt has documents marked, and its answers stand at fewer than three places (or once at each), so it "
            f"cannot be told whether attention depends on the place (n = {num_golds})."
        )
    return "No attention to documents, or to an answer in the text, was captured, so nothing can be said of it (n = 0)."


def _finding(
    said: dict[str, Any],
    profiles: Sequence[AttentionProfile],
    left_out: LeftOut,
    margin: float,
    details: tuple[Measurement, ...],
    suggests: tuple[Suggestion, ...],
) -> Finding:
    first, ends = profiles[0], ("primacy", "recency")
    low = min(first.intervals[name].low for name in ends)
    high = min(first.intervals[name].high for name in ends)
    p_value = first.p_value
    verdict: Verdict = (
        "supported" if low > margin and p_value < ALPHA else "refuted" if high <= margin else "inconclusive"
    )
    shuffled = first.shuffled[:, 0]
    reach = np.quantile(shuffled, [0.025, 0.975])
    return Finding(
        **said,
        headline={
            "supported": "Attention favours the first and the last document, whatever they say",
            "refuted": "Attention does not favour both ends",
            "inconclusive": "Whether attention depends on the place cannot be told",
        }[verdict],
        claim=_claim(first, verdict, margin),
        verdict=verdict,
        measured=Measurement(
            name=f"{_U}: {first.what}",
            value=first.values["U"],
            unit="of the mean",
            interval=first.intervals["U"],
            n=first.n,
            dropped=left_out.total,
        ),
        control=Measurement(
            name="the same with places shuffled",
            value=float(shuffled.mean().round(9)),
            unit="of the mean",
            interval=Interval(low=float(reach[0]), high=float(reach[1]), method=f"{DRAWS} permutations"),
            n=first.n,
        ),
        comparison=Comparison(
            name="both ends above the middle, the larger of two one-sided p-values against shuffled places",
            p_value=p_value,
            p_is_bound=p_value <= 1.001 / (1 + DRAWS),
            n=first.n,
        ),
        details=(*(each for each in _details([first]) if not each.name.startswith("U,")), *details),
        suggests=suggests if verdict == "supported" else (),
        notes=tuple(_notes(first, left_out, verdict, margin)),
    )


def _notes(first: AttentionProfile, left_out: LeftOut, verdict: Verdict, margin: float) -> Iterator[str]:
    yield from left_out.notes()
    yield f"Relevance is fixed by taking {first.what}; primacy and recency must both exceed {margin:g} of the mean."
    if verdict == "inconclusive":
        widest = max(first.intervals[name].high - first.intervals[name].low for name in ("primacy", "recency")) / 2
        enough = int(np.ceil(first.n * (widest / margin) ** 2))
        yield f"To tell {margin:g} of the mean, about {enough:,} prompts would do."
    yield (
        "In one prompt of dummies no document draws attention away from the others, so subtracting takes off more than "
        "with a dummy at one place (the paper's form, a prompt for each place)."
    )


def _claim(first: AttentionProfile, verdict: Verdict, margin: float) -> str:
    seen = (
        f"of {first.what} the first gets {first.at(0):.2f} times the mean attention, the middle {first.at(0.5):.2f}, "
        f"the last {first.at(1):.2f}"
    )
    u = first.intervals["U"]
    tail = f"(U {first.values['U']:.2f} {u}; {p_text(first.p_value, DRAWS)}, n = {first.n} prompts)"
    if verdict == "inconclusive":
        return f"Whether both ends are favoured cannot be told: {seen} {tail}."
    if verdict == "refuted":
        less = [name for name in ("primacy", "recency") if first.intervals[name].high <= margin]
        ends = " and ".join({"primacy": "the first", "recency": "the last"}[name] for name in less)
        verb = "are" if len(less) > 1 else "is"
        return f"Attention does not favour both ends, as {ends} {verb} not ahead of those between: {seen} {tail}."
    return f"Attention favours the first and the last document whatever they say: {seen} {tail}."
