"""Which heads copy the answer from where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probe import chart
from probe.analyses.measures.copying import Counting, Floats, Reading, SuccessRule, read, success
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Figure, Finding, Interval, Measurement, Suggestion, Verdict
from probe.intervals import FEWEST_PROMPTS, by_cluster, mean_ends, percentiles, resamples
from probe.selection import LeftOut, answered, selected

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
    "score_one_past",
    "kv_head",
)
_THRESHOLDS = np.round(np.arange(0.02, 1.0, 0.02), 2)


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

    It needs answers that are right: without one it measures nothing. It does not show that a head is used (see
    `head_ablation`), and a head whose largest probability is on the first token scores 0 however well it copies.
    """
    _check(threshold, denominator, counting, success_rule)
    left_out = LeftOut()
    readings: list[Reading] = []
    units: list[str] = []
    rules: set[str] = set()
    group: int | None = None
    for trace, outcome in answered(selected(run, half=half), left_out):
        rule, succeeded = success(trace.sample, outcome, success_rule)
        if not succeeded:
            left_out.add(f"the answer was wrong (success rule: {rule})")
        elif (reading := read(trace, outcome, _SPAN[denominator], counting, left_out)) is not None:
            readings.append(reading)
            units.append(trace.unit)
            rules.add(rule)
            group = group or _group_size(trace)
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
        "evidence": tuple(units),
    }
    if not readings:
        return Finding(
            **said,
            claim="No retrieval succeeded, so no head can be seen to retrieve.",
            verdict="inconclusive",
            measured=Measurement(name="heads that retrieve", value=None, unit="%", n=0, dropped=left_out.total),
            notes=(*left_out.notes(), "The score is defined over successful retrievals alone."),
        )
    return _finding(said, _measure(readings, threshold, counting, seed), left_out, threshold, group)


def _check(threshold: float, denominator: str, counting: str, success_rule: str) -> None:
    if not 0 <= threshold < 1:
        raise UsageError(f"threshold {threshold}: expected a score from 0 to below 1")
    if denominator not in _SPAN:
        raise UsageError(f"denominator {denominator!r}: expected `answer` or `needle`")
    if counting not in ("set", "occurrences"):
        raise UsageError(f"counting {counting!r}: expected `set` or `occurrences`")
    if success_rule not in ("outcome", "recall"):
        raise UsageError(f"success_rule {success_rule!r}: expected `outcome` or `recall`")


def _group_size(trace: Trace) -> int | None:
    """Return how many query heads share a key-value head; None where the trace does not say."""
    heads, kv_heads = trace.dataset.sizes.get("head"), trace.dataset.sizes.get("kv_head")
    return heads // kv_heads if heads and kv_heads else None


@dataclass(frozen=True)
class _Heads:
    """Every head's numbers over the prompts, `[layer head]` each."""

    mean: Floats
    low: Floats
    high: Floats
    null: Floats
    past: Floats
    looks: Floats
    activation: Floats
    exists: NDArray[np.bool_]
    drawn: Floats
    """Mean scores of the heads that exist in each resample of the prompts, `[draw head]`."""
    null_drawn: Floats
    chance: float
    num_prompts: int
    num_traces: int
    above: tuple[tuple[int, int], ...]
    """Heads above the threshold, strongest first."""

    @property
    def num_heads(self) -> int:
        return int(self.exists.sum())

    def interval(self, at: tuple[int, int]) -> Interval | None:
        if self.num_prompts < 2:
            return None
        method = "bootstrap over prompts; exact bound where all agree"
        return Interval(low=float(self.low[at]), high=float(self.high[at]), method=method)


def _measure(readings: list[Reading], threshold: float, counting: Counting, seed: int) -> _Heads:
    prompts = [reading.prompt for reading in readings]
    score = by_cluster([reading.score for reading in readings], prompts)
    exists = np.any([reading.exists for reading in readings], axis=0)
    mean = score.mean(axis=0)
    most = 1.0 if counting == "set" else max(1.0, float(score.max()))
    low, high = mean_ends(score, bounds=(0.0, most), seed=seed)
    looked = [reading for reading in readings if np.isfinite(reading.null).all()]
    null, null_drawn = np.full(mean.shape, np.nan), np.empty((0, int(exists.sum())))
    if looked:
        by_prompt = by_cluster([reading.null for reading in looked], [reading.prompt for reading in looked])
        null, null_drawn = by_prompt.mean(axis=0), _drawn(by_prompt[:, exists], seed)
    order = sorted(np.argwhere((mean > threshold) & exists).tolist(), key=lambda at: (-mean[tuple(at)], at))
    return _Heads(
        mean=mean,
        low=low,
        high=high,
        null=null,
        past=by_cluster([reading.past for reading in readings], prompts).mean(axis=0),
        looks=by_cluster([reading.looks for reading in readings], prompts).mean(axis=0),
        activation=(score > 0).mean(axis=0),
        exists=exists,
        drawn=_drawn(score[:, exists], seed),
        null_drawn=null_drawn,
        chance=float(np.mean([reading.chance for reading in readings])),
        num_prompts=len(score),
        num_traces=len(readings),
        above=tuple((int(layer), int(head)) for layer, head in order),
    )


def _drawn(by_prompt: Floats, seed: int) -> Floats:
    return np.asarray(resamples(len(by_prompt), seed=seed) @ by_prompt / len(by_prompt), np.float64)


def _share(name: str, above: NDArray[np.bool_], drawn: Floats, threshold: float, n: int, dropped: int) -> Measurement:
    """Return the share of heads above the threshold, with its interval over prompts."""
    interval = None
    if n > 1:
        low, high = percentiles(100 * (drawn > threshold).mean(axis=-1))
        interval = Interval(low=float(low), high=float(high), method="bootstrap over prompts")
    return Measurement(name=name, value=100 * float(above.mean()), unit="%", interval=interval, n=n, dropped=dropped)


def _verdict(heads: _Heads, threshold: float) -> Verdict:
    if heads.num_prompts < FEWEST_PROMPTS:
        return "inconclusive"
    # Certain: above the threshold in almost all resamples, and copying more than looking alone would give.
    if any(heads.low[at] > threshold and not heads.low[at] <= heads.null[at] for at in heads.above):
        return "supported"
    return "refuted" if float(heads.high[heads.exists].max()) <= threshold else "inconclusive"


def _finding(said: dict[str, Any], heads: _Heads, left_out: LeftOut, threshold: float, group: int | None) -> Finding:
    n, exists = heads.num_prompts, heads.exists
    measured = _share("heads that retrieve", heads.mean[exists] > threshold, heads.drawn, threshold, n, left_out.total)
    control = None
    if np.isfinite(heads.null).all():
        name = "heads above the threshold if each step is given another step's token"
        control = _share(name, heads.null[exists] > threshold, heads.null_drawn, threshold, n, 0)
    past = int(((heads.past > threshold) & exists).sum())
    verdict = _verdict(heads, threshold)
    notes = [
        *left_out.notes(),
        f"Used: {n} prompts answered right, of {heads.num_traces + left_out.total} traces.",
        "The interval is over prompts: the model's heads are all there are, the prompts are a sample. It has no width "
        "where every resample of the prompts names as many heads.",
        "Refuted means: with 95 % certainty no head's mean score is above the threshold.",
        "The control gives each step the token of another step: a head that looks at the needle without reading the "
        "token there scores as much (this toolkit's own).",
    ]
    if control is None:
        notes.append("Answers of one token leave no other step, so that the control could not be computed.")
    if n < FEWEST_PROMPTS:
        notes.append(f"Fewer than {FEWEST_PROMPTS} prompts: too few for a verdict.")
    if past > len(heads.above):
        notes.append(f"{past} heads look one token past what is copied, which the criterion scores 0: see the table.")
    return Finding(
        **said,
        headline=_headline(heads, verdict),
        claim=_claim(heads, measured, threshold, verdict),
        verdict=verdict,
        measured=measured,
        control=control,
        details=tuple(_details(heads, past, group, threshold)),
        columns=_COLUMNS,
        table=tuple(_rows(heads, group, threshold)),
        figures=(_atlas(heads, threshold), _curve(heads, threshold)),
        suggests=tuple(_suggestions(heads)),
        notes=tuple(notes),
    )


def _suggestions(heads: _Heads) -> Iterator[Suggestion]:
    # A head that copies no more than looking alone would give is not worth removing for its copying.
    reading = [at for at in heads.above if not heads.mean[at] <= heads.null[at]]
    if reading:
        yield Suggestion(
            intervention="ablate_heads",
            fields={"heads": [list(at) for at in reading], "form": "zero", "phase": "both"},
            reason="If these heads carry the answer, removing them breaks it, and removing others like them does not.",
        )


def _rows(heads: _Heads, group: int | None, threshold: float) -> Iterator[tuple[JsonValue, ...]]:
    """Yield a row for each head that retrieves, or that looks one past what is copied, strongest first."""
    others = np.argwhere((heads.past > threshold) & heads.exists).tolist()
    rest = [(int(layer), int(head)) for layer, head in others if (layer, head) not in heads.above]
    arrays = (heads.mean, heads.low, heads.high, heads.null, heads.activation, heads.looks, heads.past)
    for at in (*heads.above, *rest):
        numbers = [float(f"{array[at]:.4g}") if np.isfinite(array[at]) else None for array in arrays]
        yield (*at, *numbers, None if group is None else at[1] // group)


def _details(heads: _Heads, past: int, group: int | None, threshold: float) -> Iterator[Measurement]:
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
    name = "steps at which a key drawn at random would lie at the source"
    yield Measurement(name=name, value=100 * heads.chance, unit="%", n=n)
    name = "heads that look one token past what is copied (this toolkit's own)"
    yield Measurement(name=name, value=100 * past / heads.num_heads, unit="%", n=n)
    if group is not None and group > 1 and heads.mean.shape[1] % group == 0:
        grouped = heads.mean.reshape(heads.mean.shape[0], -1, group).max(axis=-1)
        name = "key-value heads with a query head that retrieves"
        yield Measurement(name=name, value=100 * float((grouped > threshold).mean()), unit="%", n=n)


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


def _headline(heads: _Heads, verdict: Verdict) -> str:
    if verdict == "inconclusive":
        return "Whether any head copies the answer cannot be told"
    verb = "copies" if len(heads.above) == 1 else "copy"
    return f"{len(heads.above) or 'None'} of {heads.num_heads} heads {verb} the answer from where it stands"


def _claim(heads: _Heads, measured: Measurement, threshold: float, verdict: Verdict) -> str:
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


def _atlas(heads: _Heads, threshold: float) -> Figure:
    few = f"{len(heads.above)} of {heads.num_heads}" if heads.above else f"None of {heads.num_heads}"
    data, layout = chart.atlas(
        heads.mean,
        heads.exists,
        unit="copying score",
        marked=heads.above,
        high=max(1.0, float(heads.mean.max())),
    )
    return chart.figure(
        "retrieval_atlas",
        f"{few} heads copy the answer from where it stands",
        "Mean copying score of each query head: the share of the answer's tokens that stood under the head's largest "
        f"probability when they were produced, over {heads.num_prompts} prompts answered right. Framed: above "
        f"{threshold:g}.",
        data,
        layout,
    )


def _curve(heads: _Heads, threshold: float) -> Figure:
    thresholds = np.unique(np.append(_THRESHOLDS, threshold))

    def above(scores: Floats) -> Floats:
        ordered = np.sort(scores, axis=-1)
        counts = [np.asarray(ordered.shape[-1] - np.searchsorted(row, thresholds, side="right")) for row in ordered]
        return np.asarray(np.asarray(counts) / ordered.shape[-1], np.float64)

    hover = {"mode": "lines", "hovertemplate": "above %{x:.2f}: %{y:.1%} of heads<extra></extra>"}
    share = above(heads.mean[heads.exists][None])[0]
    data = chart.band(thresholds, *percentiles(above(heads.drawn))) if heads.num_prompts > 1 else []
    data.append(chart.line("score", thresholds, share, **hover))
    if np.isfinite(heads.null).all():
        null = above(heads.null[heads.exists][None])[0]
        name = "control: each step given another step's token"
        data.append(chart.line(name, thresholds, null, color=chart.QUIET, dash="dash", **hover))
    top = max(0.02, 1.15 * float(share.max()))
    return chart.figure(
        "retrieval_thresholds",
        "How many heads retrieve, whatever the threshold",
        "Share of query heads whose mean score is above each threshold, with the 95 % interval over prompts. Upright: "
        f"the threshold in use, {threshold:g}. Where the line is flat, the count does not hang on the threshold.",
        data,
        {
            "xaxis": chart.axis("threshold on the copying score", range=[0, 1]),
            "yaxis": chart.axis("share of heads", tickformat=".1~%", range=[-0.02 * top, top]),
            "shapes": [chart.rule(x=threshold)],
        },
    )
