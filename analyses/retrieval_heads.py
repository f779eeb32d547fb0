"""Which heads copy the answer from where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probe.analyses.figures.retrieval import atlas, curve, pairs
from probe.analyses.measures.copying import Counting, Reading, SuccessRule, group_size, read, success
from probe.analyses.measures.head_scores import FALSE_DISCOVERIES, HeadScores, across_contexts, head_scores, steadiness
from probe.analyses.measures.rope_signature import RopeSignature, rope_signature
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Finding, Interval, Measurement, Suggestion, Verdict
from probe.intervals import FEWEST_PROMPTS, percentiles
from probe.selection import LeftOut, answered, length, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace


Denominator = Literal["answer", "needle"]

QUESTION = "Which heads copy the answer from where it stands in the context?"
SOURCE = "Wu et al. 2024, Retrieval Head Mechanistically Explains Long-Context Factuality, arXiv 2404.15574, section 2"
_SPAN = {"answer": "needle_value", "needle": "needle"}
_COLUMNS = (
    "layer",
    "head",
    "score",
    "score_low",
    "score_high",
    "control_score",
    "activation_frequency",
    "looks_at_source",
    "q_value",
    "looks_past",
    "score_there",
    "kv_head",
    "writes_logit",
)


@analysis(question=QUESTION, source=SOURCE, needs={"top_keys": {"k": 1}}, reads_tokens=True)
def retrieval_heads(
    run: Run | Trace | Iterable[Trace],
    *,
    threshold: float = 0.1,
    denominator: Denominator = "answer",
    counting: Counting = "set",
    success_rule: SuccessRule = "outcome",
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Find the heads whose largest attention, while the model answers, lies on the very token that it then produces.

    A step counts for a head iff the key of its largest probability lies in the needle and the token there is the one
    that the model produced; the score is the share of the needle's distinct tokens copied so, averaged over successful
    retrievals, per query head (Wu et al. 2024, section 2). `denominator` is what the needle is: the answer's place in
    it, as in the authors' code (span `needle_value`), or its whole sentence, as in the paper (span `needle`).
    `counting="occurrences"` counts steps rather than distinct tokens, as the code does; it can exceed 1. `success_rule`
    is the outcome's own, or `recall`: above half of the answer's tokens appear in the response (the code's ROUGE-1
    recall, over tokens rather than words). `half` restricts to one half of the samples, so that the other can test.

    Supported: a head's mean score lies above `threshold` with 95 % certainty over prompts, and it copies more than
    looking at the answer alone would give. Refuted: with the same certainty no head's mean lies above it.

    Where `span_logit` and `rope_share` were captured, it says what these heads write, and which rotary pairs make their
    logits beside the other heads of their layers.

    What it does not mean: it does not show that a head is used (see `head_ablation`). A head whose largest probability
    is on the first token scores 0 however well it copies, and one that works with tokens unlike those that are written
    is not seen. Without an answer that is right it measures nothing, which is inconclusive and not a model without such
    heads.
    """
    _check(threshold, denominator, counting, success_rule)
    left_out = LeftOut()
    readings: list[Reading] = []
    used: list[Trace] = []
    rules: set[str] = set()
    group: int | None = None
    for trace, outcome in answered(selected(run, half=half), left_out):
        rule, succeeded = success(trace.sample, outcome, success_rule)
        if not succeeded:
            left_out.add(f"the answer was wrong (success rule: {rule})")
        elif (reading := read(trace, outcome, _SPAN[denominator], counting, left_out)) is not None:
            readings.append(reading)
            used.append(trace)
            rules.add(rule)
            group = group or group_size(trace)
    parameters = {
        "threshold": threshold,
        "denominator": denominator,
        "counting": counting,
        "success_rule": success_rule,
        "half": half,
        "seed": seed,
    }
    said: dict[str, Any] = {
        "analysis": "retrieval_heads",
        "question": QUESTION,
        "definition": _definition(threshold, denominator, counting, ", ".join(sorted(rules)) or success_rule),
        "source": SOURCE,
        "parameters": parameters,
        "evidence": tuple(trace.unit for trace in used),
    }
    if not readings:
        return Finding(
            **said,
            claim="No retrieval succeeded, so no head can be seen to retrieve.",
            verdict="inconclusive",
            measured=Measurement(name="heads that retrieve", value=None, unit="%", n=0, dropped=left_out.total),
            notes=(*left_out.notes(), "The score is defined over successful retrievals alone."),
        )
    heads = head_scores(readings, used, _SPAN[denominator], threshold, counting, seed)
    kinds = {trace.sample.name: str(length(trace)) for trace in used}
    across = across_contexts(heads, [kinds[name] for name in sorted(kinds)])
    signature = rope_signature(used, heads.above)
    turning = None if signature is None else signature.measurement(seed)
    steady = [*steadiness(heads, seed), *(each for each in (across, turning) if each)]
    return _finding(said, heads, left_out, threshold, group, steady, signature)


def _check(threshold: float, denominator: str, counting: str, success_rule: str) -> None:
    if not 0 <= threshold < 1:
        raise UsageError(f"threshold {threshold}: expected a score from 0 to below 1")
    if denominator not in _SPAN:
        raise UsageError(f"denominator {denominator!r}: expected `answer` or `needle`")
    if counting not in ("set", "occurrences"):
        raise UsageError(f"counting {counting!r}: expected `set` or `occurrences`")
    if success_rule not in ("outcome", "recall"):
        raise UsageError(f"success_rule {success_rule!r}: expected `outcome` or `recall`")


def _share(
    name: str, above: NDArray[np.bool_], drawn: NDArray[np.float64], threshold: float, n: int, dropped: int
) -> Measurement:
    """Return the share of heads above the threshold, with its interval over prompts."""
    interval = None
    if n > 1:
        low, high = percentiles(100 * (drawn > threshold).mean(axis=-1))
        interval = Interval(low=float(low), high=float(high), method="bootstrap over prompts")
    return Measurement(name=name, value=100 * float(above.mean()), unit="%", interval=interval, n=n, dropped=dropped)


def _verdict(heads: HeadScores, threshold: float) -> Verdict:
    if heads.num_prompts < FEWEST_PROMPTS:
        return "inconclusive"
    if any(heads.low[at] > threshold and _reads(heads, at) for at in heads.above):
        return "supported"
    return "refuted" if float(heads.high[heads.exists].max()) <= threshold else "inconclusive"


def _reads(heads: HeadScores, at: tuple[int, int]) -> bool:
    """Return whether a head copies more than looking alone gives; of answers of one token nobody can tell."""
    return bool(np.isnan(heads.null[at]) or heads.q[at] <= FALSE_DISCOVERIES)


def _finding(
    said: dict[str, Any],
    heads: HeadScores,
    left_out: LeftOut,
    threshold: float,
    group: int | None,
    steady: list[Measurement],
    signature: RopeSignature | None,
) -> Finding:
    n, exists = heads.num_prompts, heads.exists
    measured = _share("heads that retrieve", heads.mean[exists] > threshold, heads.drawn, threshold, n, left_out.total)
    control = None
    if np.isfinite(heads.null).all():
        name = "heads above the threshold if each step is given another step's token"
        control = _share(name, heads.null[exists] > threshold, heads.null_drawn, threshold, n, 0)
    verdict = _verdict(heads, threshold)
    notes = [
        *left_out.notes(),
        f"Used: {n} prompts answered right, of {heads.num_traces + left_out.total} traces.",
        "The interval is over prompts: the model's heads are all there are, the prompts are a sample. It has no width "
        "where every resample of the prompts names as many heads.",
        "Refuted means: with 95 % certainty no head's mean score is above the threshold.",
        "The control gives each step the token of another step: a head that looks at the needle without reading the "
        "token there scores as much. Supported means: some head is certain to score above the threshold, and copies "
        f"more than that by a rotation test (q ≤ {FALSE_DISCOVERIES:g} over all heads; both this toolkit's own).",
        *_doubted(heads),
    ]
    if control is None:
        notes.append("Answers of one token leave no other step, so that the control could not be computed.")
    if n < FEWEST_PROMPTS:
        notes.append(f"Fewer than {FEWEST_PROMPTS} prompts: too few for a verdict.")
    notes += _apart(heads)
    return Finding(
        **said,
        headline=_headline(heads, verdict),
        claim=_claim(heads, measured, threshold, verdict),
        verdict=verdict,
        measured=measured,
        control=control,
        details=(*_details(heads, group, threshold), *steady),
        columns=_COLUMNS,
        table=tuple(_rows(heads, group, threshold)),
        figures=(atlas(heads, threshold), curve(heads, threshold), *([pairs(signature)] if signature else [])),
        suggests=tuple(_suggestions(heads)),
        notes=tuple(notes),
    )


def _suggestions(heads: HeadScores) -> Iterator[Suggestion]:
    # A head that copies no more than looking alone would give is not worth removing for its copying.
    reading = [at for at in heads.above if not heads.mean[at] <= heads.null[at]]
    if reading:
        yield Suggestion(
            intervention="ablate_heads",
            fields={"heads": [list(at) for at in reading], "form": "zero", "phase": "both"},
            reason="If these heads carry the answer, removing them breaks it, and removing others like them does not.",
        )


def _doubted(heads: HeadScores) -> Iterator[str]:
    doubted = [at for at in heads.above if not _reads(heads, at)]
    if doubted:
        names = ", ".join(map(str, doubted[:8])) + (" and others" if len(doubted) > 8 else "")
        yield f"Above the threshold, and not certain to read what they look at (q > {FALSE_DISCOVERIES:g}): {names}."


def _apart(heads: HeadScores) -> Iterator[str]:
    """Say which heads copy and are not counted, and which are counted and write nothing."""
    if heads.moved:
        named = ", ".join(f"{at} {_places(int(heads.shift[at]))}" for at in heads.moved[:8])
        more = f" and {len(heads.moved) - 8} more" if len(heads.moved) > 8 else ""
        yield (
            "Shifted copying heads, which the criterion scores low since they look beside what they copy: "
            f"{named}{more} (this toolkit's own; see the table)."
        )
    if heads.writes is not None:
        idle = [at for at in heads.above if heads.writes[at] <= 0]
        if idle:
            names = ", ".join(map(str, idle[:8])) + (" and others" if len(idle) > 8 else "")
            yield f"They look at the source and write nothing for the answer's logit: {names} (see `span_logit`)."


def _places(shift: int) -> str:
    return f"({abs(shift)} {'past' if shift > 0 else 'before'} it)"


def _rows(heads: HeadScores, group: int | None, threshold: float) -> Iterator[tuple[JsonValue, ...]]:
    """Yield a row for each head that retrieves, or that copies looking beside the source, strongest first."""
    arrays = (heads.mean, heads.low, heads.high, heads.null, heads.activation, heads.looks, heads.q)
    for at in (*heads.above, *heads.moved):
        numbers = [float(f"{array[at]:.4g}") if np.isfinite(array[at]) else None for array in arrays]
        there = (int(heads.shift[at]), float(f"{heads.shifted[at]:.4g}"))
        writes = None if heads.writes is None else float(f"{heads.writes[at]:.4g}")
        yield (*at, *numbers, *there, None if group is None else at[1] // group, writes)


def _details(heads: HeadScores, group: int | None, threshold: float) -> Iterator[Measurement]:
    n = heads.num_prompts
    for at in heads.above[:10]:
        yield Measurement(name=f"score of head {at}", value=float(heads.mean[at]), interval=heads.interval(at), n=n)
    rest = heads.exists.copy()
    for at in heads.above:
        rest[at] = False
    if rest.any():
        yield Measurement(name="largest score among the other heads", value=float(heads.mean[rest].max()), n=n)
    always = float((heads.activation[heads.exists] == 1).mean())
    yield Measurement(name="heads that copy something in every prompt", value=100 * always, unit="%", n=n)
    activation = heads.activation[heads.exists]
    sometimes = 100 * float(((activation > 0) & (activation < 1)).mean())
    yield Measurement(name="heads that copy something in some prompts alone", value=sometimes, unit="%", n=n)
    name = "steps at which a key drawn at random would lie at the source"
    yield Measurement(name=name, value=100 * heads.chance, unit="%", n=n)
    name = "heads that copy looking beside the source (this toolkit's own)"
    yield Measurement(name=name, value=100 * len(heads.moved) / heads.num_heads, unit="%", n=n)
    if group is not None and group > 1 and heads.mean.shape[1] % group == 0:
        grouped = heads.mean.reshape(heads.mean.shape[0], -1, group)
        for name, scores in (
            ("key-value heads with a query head that retrieves", grouped.max(axis=-1)),
            ("key-value heads whose query heads retrieve on average", grouped.mean(axis=-1)),
        ):
            yield Measurement(name=name, value=100 * float((scores > threshold).mean()), unit="%", n=n)


def _definition(threshold: float, denominator: Denominator, counting: Counting, rule: str) -> str:
    place = "the answer's tokens in the needle" if denominator == "answer" else "the needle's whole sentence"
    what = (
        "the share of its distinct tokens copied so"
        if counting == "set"
        else "the number of steps that copy so, over its tokens (as the authors' code counts; it can exceed 1)"
    )
    return (
        f"At a step that produces token w, a head copies iff the key of its largest probability lies in {place} and "
        f"the token there is w. Its score is {what}, averaged over prompts answered right (success rule: {rule}). "
        f"It retrieves iff the mean is above {threshold:g}. Per query head."
    )


def _headline(heads: HeadScores, verdict: Verdict) -> str:
    if verdict == "inconclusive":
        return "Whether any head copies the answer cannot be told"
    verb = "copies" if len(heads.above) == 1 else "copy"
    return f"{len(heads.above) or 'None'} of {heads.num_heads} heads {verb} the answer from where it stands"


def _claim(heads: HeadScores, measured: Measurement, threshold: float, verdict: Verdict) -> str:
    prompts = f"n = {heads.num_prompts} prompt{'s' if heads.num_prompts > 1 else ''} answered right"
    if not heads.above:
        return (
            f"No head of {heads.num_heads} copies the answer from where it stands: the largest score is "
            f"{heads.mean.max():.2f}, the threshold {threshold:g} ({prompts})."
        )
    share = f"{measured.value:.1f} %"
    if measured.interval is not None and measured.interval.low < measured.interval.high:
        share += f" [{measured.interval.low:.1f}, {measured.interval.high:.1f}]"
    elif measured.interval is not None:
        share += ", the same in every resample of the prompts"
    best = heads.above[0]
    ends = f" [{heads.low[best]:.2f}, {heads.high[best]:.2f}]" if heads.num_prompts > 1 else ""
    names = ", ".join(str(at) for at in heads.above[:8])
    more = f" and {len(heads.above) - 8} more" if len(heads.above) > 8 else ""
    verb = "copy" if len(heads.above) > 1 else "copies"
    doing = f"{verb} the answer from where it stands"
    doubt = ""
    if verdict != "supported":
        few = heads.num_prompts < FEWEST_PROMPTS
        doubt = ", too few to be sure" if few else ", no more than looking without reading would give for certain"
        doing = f"{'score' if len(heads.above) > 1 else 'scores'} above {threshold:g}"
    return (
        f"{len(heads.above)} of {heads.num_heads} heads {doing} ({share}): (layer, head) "
        f"{names}{more}; the strongest scores {heads.mean[best]:.2f}{ends} of 1 ({prompts}{doubt})."
    )
