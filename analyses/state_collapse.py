"""Whether a recurrent state leaves its trained range, and whether recall of what is recent goes with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probe.analyses.figures.lengths import Rate
from probe.analyses.figures.states import recall_figure, state_figure
from probe.analyses.measures.loss_beyond import loss_rise
from probe.analyses.measures.recall_by_age import Fall, Recall, critical_length, fall, rate, rate_alone, recalls
from probe.analyses.measures.state_behaviour import Behaviour, forgets, of_loss, of_recall
from probe.analyses.measures.state_growth import REACHES, Growth, state_growth, why_not_measured
from probe.analyses.measures.state_readings import StateReading, state_readings, trained_length
from probe.analyses.measures.state_rows import COLUMNS, state_rows, to_forget_faster
from probe.analysis import analysis
from probe.finding import Finding, Interval, Measurement, Verdict
from probe.intervals import FEWEST_PROMPTS, percentiles, resamples
from probe.selection import LeftOut, answered, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "Does the recurrent state leave its trained range, and is what was just read lost with it?"
SOURCE = (
    "State statistics by position and their onset beyond the training length: Chen et al. 2024, Stuffed Mamba, arXiv "
    "2410.07145; effective distance: Ben-Kish et al. 2024, DeciMamba, arXiv 2406.14528. The paper defines no measure "
    "of collapse: the ratio, its threshold, onset, critical length and the three-way verdict are this toolkit's own"
)
_NAME = "state variance at twice the training length, over its largest within"


def _needs(*, every: int = 64, reach: bool = True, **_: Any) -> dict[str, dict[str, JsonValue]]:
    states: dict[str, dict[str, JsonValue]] = {
        name: {"every": every} for name in ("state_variance", "state_mean", "state_max")
    }
    return {**states, "decay": {}, "loss": {}, **({"effective_distance": {}} if reach else {})}


@analysis(question=QUESTION, source=SOURCE, needs=_needs, about_recurrence=True)
def state_collapse(
    run: Run | Trace | Iterable[Trace],
    *,
    trained: int | None = None,
    every: int = 64,
    reach: bool = True,
    threshold: float = 2.0,
    margin: float = 0.1,
    loss_margin: float = 0.1,
    seed: int = 0,
) -> Finding:
    """Measure how far each recurrent head's state grows beyond the training length, and what recall does meanwhile.

    `trained` is the training length in tokens; None takes what the model's configuration says. `every` is the number of
    tokens between readings of the state; `reach` captures effective distance, which keeps every layer's keys and gates
    of all tokens: leave it out for long texts.

    Over texts of at least twice the training length: ratio = variance at the reading nearest twice that length / its
    largest reading within it, geometric mean over texts. A head explodes where the ratio lies above `threshold` and ln
    variance still rises over the second half of what lies beyond (two one-sided t tests over texts, the larger p,
    Benjamini-Hochberg over heads at .05). The headline is the head with the largest ratio on one half of the samples,
    measured on the other; the control is the median of the heads that stay.

    Behaviour is the recall of answers at most a training length old, in whole texts against the same texts' ends alone
    (role `gold_only`), which differ in nothing but the state that is carried over (and what a convolution of a few
    tokens sees at their beginning); without those, against texts within the training length. Where nothing is asked it
    is the loss from twice the training length on. It fails where it falls by more than `margin` (a share; `loss_margin`
    nats) with p < .05.

    Supported (collapse): a head explodes and behaviour fails. Refuted: behaviour certainly falls by less than the
    margin (the claim says whether the state drifts, whether older answers are forgotten, or neither), or every head
    certainly stays within `threshold`.

    What it does not mean: that a state leaves its range and that recall fails are seen together, not that one is the
    cause of the other: `faster_forgetting` tries a cure. Refuted holds up to the lengths that were read. Measure and
    threshold are this toolkit's own, so that no figure compares with the paper's.
    """
    left_out = LeftOut()
    traces = selected(run)
    length = trained_length(traces, trained)
    readings = state_readings(traces, left_out)
    said: dict[str, Any] = {
        "analysis": "state_collapse",
        "question": QUESTION,
        "definition": f"A head explodes where its state's variance at twice the training length is more than "
        f"{threshold:g} times the largest within, and still rises; a collapse is that, and recent answers lost.",
        "source": SOURCE,
        "parameters": {
            "trained": trained,
            "every": every,
            "reach": reach,
            "threshold": threshold,
            "margin": margin,
            "loss_margin": loss_margin,
            "seed": seed,
        },
    }
    usable: list[StateReading] = []
    for reading in readings if length else ():
        reason = why_not_measured(reading, length or 0)
        if reason is None:
            usable.append(reading)
        else:
            left_out.add(reason)
    if length is None or not usable:
        reason = _missing(traces, readings, length)
        return Finding(
            **said,
            headline="Whether the state collapses cannot be told",
            claim=f"Whether the state collapses cannot be told: {reason}",
            verdict="inconclusive",
            measured=Measurement(name=_NAME, value=None, n=0, dropped=left_out.total),
            notes=left_out.notes(),
        )
    answers_left = LeftOut()
    some = recalls(answered(traces, answers_left), answered(selected(run, role="gold_only"), LeftOut()), answers_left)
    compared = fall(some, length)
    behaviour = (
        of_recall(compared, length, margin) if compared else of_loss(loss_rise(traces, length, seed), loss_margin)
    )
    state = _chosen(state_growth(usable, length, threshold), seed)
    verdict, headline, claim, reasons = _answer(length, state, behaviour, some)
    rows = tuple(state_rows(state.growth, usable, traces, length, seed))
    kinds = traces[0].provenance.get("recurrent_layers") or {}
    ratio = state.measured
    notes = [*left_out.notes(), *(answers_left.notes() if some else ()), *reasons]
    if compared and compared.paired and any(_attends(trace) for trace in traces):
        notes.append("Attention layers saw the earlier text too, so the fall is not the recurrent state's alone.")
    if some:
        notes.append("The rise of loss counts every token of the texts, those that nothing could tell included.")
    notes.append("Single channels are not told apart: `peak` is a state's largest entry over its root mean square.")
    return Finding(
        **said,
        headline=headline,
        claim=claim,
        verdict=verdict,
        measured=ratio.model_copy(update={"dropped": left_out.total}),
        control=state.control,
        comparison=behaviour.comparison,
        details=tuple(_details(state, some, length, compared, traces, seed)),
        columns=COLUMNS,
        table=rows,
        figures=tuple(_figures(state, usable, some, length)),
        suggests=tuple(to_forget_faster(rows, kinds, length)),
        notes=tuple(notes),
        evidence=tuple(reading.unit for reading in usable),
    )


def _missing(traces: Sequence[Trace], readings: Sequence[StateReading], length: int | None) -> str:
    if not traces:
        return "nothing was read."
    if not readings:
        if any(_recurs(trace) for trace in traces):
            return "no state of its recurrent layers was captured (state_variance, state_mean and state_max)."
        return "no layer of this model recurs; the question needs a recurrent model or a hybrid, such as Mamba."
    if length is None:
        return "the model does not say how long its training texts were; give `trained`, in tokens."
    return (
        f"texts of {2 * length:,} tokens or more, twice the training length, are needed, with the state read within "
        "the training length and beyond."
    )


def _recurs(trace: Trace) -> bool:
    return bool(trace.provenance.get("recurrent_layers"))


def _attends(trace: Trace) -> bool:
    return bool((trace.provenance.get("positions") or {}).get("layers"))


@dataclass(frozen=True)
class _State:
    """How the states grow, and the head that stands for it."""

    growth: Growth
    chosen: int
    """Index of the head with the largest ratio on one half of the prompts."""
    rows: NDArray[np.int64]
    """Prompts that it is measured on."""
    apart: bool
    """Whether these are other prompts than those that it was chosen on."""
    measured: Measurement
    control: Measurement | None
    most: float
    """Largest upper end of any head's ratio."""

    @property
    def name(self) -> str:
        """Layer and head."""
        layer, head = self.growth.heads[self.chosen]
        return f"({layer}, {head})"


def _chosen(growth: Growth, seed: int) -> _State:
    """Choose the head that grows most on one half, and measure it and the others on the other half."""
    halves = np.array([half or ("find", "test")[i % 2] for i, half in enumerate(growth.halves)])
    find, test = np.flatnonzero(halves == "find"), np.flatnonzero(halves != "find")
    apart = len(find) > 0 and len(test) > 1
    everything = np.arange(len(halves))
    chosen = int(growth.log_ratio[find if apart else everything].mean(0).argmax())
    rows = test if apart else everything
    ratio, low, high = growth.ratio(seed, rows)
    layer, head = growth.heads[chosen]
    measured = Measurement(
        name=f"{_NAME}, head ({layer}, {head})",
        value=float(ratio[chosen]),
        unit="times",
        interval=_between(low[chosen], high[chosen], "BCa bootstrap over prompts, of the mean logarithm"),
        n=len(rows),
    )
    return _State(
        growth, chosen, rows, apart, measured, _others(growth, chosen, rows, seed), growth.ratio(seed)[2].max()
    )


def _others(growth: Growth, chosen: int, rows: NDArray[np.int64], seed: int) -> Measurement | None:
    """Return the median ratio of the heads that stay; of all but the chosen where none does; None for a single head."""
    others = np.setdiff1d(np.flatnonzero(~growth.explodes), [chosen])
    kind = "heads that do not explode"
    if not others.size:
        others, kind = np.setdiff1d(np.arange(len(growth.heads)), [chosen]), "other heads, which all explode"
    if not others.size:
        return None
    values = growth.log_ratio[rows][:, others]
    drawn = np.median(resamples(len(rows), seed=seed) / len(rows) @ values, axis=1)
    low, high = percentiles(drawn)
    return Measurement(
        name=f"the same, median of the {len(others)} {kind}",
        value=float(np.exp(np.median(values.mean(0)))),
        unit="times",
        interval=_between(float(np.exp(low)), float(np.exp(high)), "bootstrap over prompts"),
        n=len(rows),
    )


def _between(low: float, high: float, method: str) -> Interval:
    return Interval(low=float(low), high=float(high), method=method)


def _answer(
    length: int, state: _State, behaviour: Behaviour, some: Sequence[Recall]
) -> tuple[Verdict, str, str, list[str]]:
    """Return verdict, headline, claim, and what is missing."""
    growth, ratio = state.growth, state.measured
    exploding, in_range = int(growth.explodes.sum()), state.most <= growth.threshold
    enough = len(growth.prompts) >= FEWEST_PROMPTS and len(state.rows) > 1
    old = forgets([each for each in some if each.num_tokens >= REACHES * 2 * length], length)
    grows = (
        f"{exploding} of {len(growth.heads)} heads' states leave the range of the first {length:,} tokens and still "
        f"grow; that of head {state.name} varies {ratio.value:.3g} {ratio.interval} times as much at {2 * length:,} as "
        f"it ever does within it (n = {ratio.n})"
    )
    numbers = f"{grows}; {behaviour.text}" if behaviour.text else grows
    if not enough:
        needed = f"At least {FEWEST_PROMPTS} texts of twice the training length are needed, on both halves."
        return "inconclusive", _UNTOLD, f"{_UNTOLD}: {numbers}.", [needed]
    if exploding and behaviour.fails:
        return "supported", "The state collapses beyond the training length", f"The state collapses: {numbers}.", []
    if behaviour.holds:
        lost = " Older answers are forgotten." if old else ""
        if exploding:
            headline = "The state drifts, and what is recent is still recalled"
        else:
            headline = "The state forgets, and does not collapse" if old else "The state does not collapse"
        return "refuted", headline, f"{headline}: {numbers}.{lost}", []
    if in_range and not exploding:
        headline = "The state stays in its trained range"
        fails = "; what fails is not a state out of range" if behaviour.fails else ""
        return "refuted", headline, f"{headline}: {numbers}{fails}.", []
    reasons = [] if behaviour.fails else [behaviour.reason]
    if not exploding:
        reasons.append("No head certainly explodes, and none is certain to stay; longer or more texts would tell.")
    return "inconclusive", _UNTOLD, f"{_UNTOLD}: {numbers}.", reasons


_UNTOLD = "Whether the state collapses cannot be told"


def _details(
    state: _State, some: Sequence[Recall], length: int, compared: Fall | None, traces: Sequence[Trace], seed: int
) -> Iterator[Measurement]:
    growth = state.growth
    num_heads = len(growth.heads)
    yield Measurement(name="heads that explode", value=float(growth.explodes.sum()), unit="heads", n=num_heads)
    onset, ends = growth.median_onset(state.chosen, state.rows, seed)
    if np.isfinite(onset) and ends is not None:
        name = f"onset: variance of head {state.name} stays above {growth.threshold:g} times its range, median of texts"
        yield Measurement(name=name, value=onset, unit="tokens", interval=ends, n=len(state.rows))
    rise = loss_rise(traces, length, seed)
    if rise is not None:
        name = "rise of loss from twice the training length on"
        yield Measurement(name=name, value=rise.value, unit="nats", interval=rise.interval, n=rise.n)
    if compared is not None:
        at, low, certain = critical_length(some, length, compared.known)
        if at is not None:
            method = "lengths whose Clopper-Pearson intervals allow it"
            interval = _between(low, certain, method) if certain is not None else None
            name = "critical length: from here on less than half of what is recent is recalled"
            num_recent = sum(each.age <= length for each in some)
            yield Measurement(name=name, value=float(at), unit="tokens", interval=interval, n=num_recent)
    for name, rates in _rates(some, length).items():
        for at, here in rates.items():
            yield Measurement(name=f"{name} right at {at:,} tokens", value=here.share, interval=here.interval, n=here.n)


def _rates(some: Sequence[Recall], length: int) -> dict[str, dict[int, Rate]]:
    """Return the share right by length: recent answers in whole texts, in their ends alone, and older answers."""
    found: dict[str, dict[int, Rate]] = {"recent answers": {}, "recent answers, ends alone": {}, "older answers": {}}
    for at in sorted({each.length for each in some}):
        here = [each for each in some if each.length == at]
        young, old = [e for e in here if e.age <= length], [e for e in here if e.age > length]
        for name, share in zip(found, (rate(young), rate_alone(young), rate(old)), strict=True):
            if share is not None:
                found[name][at] = share
    return found


def _figures(state: _State, usable: Sequence[StateReading], some: Sequence[Recall], length: int) -> Iterator[Any]:
    yield state_figure(state.growth, usable, length)
    if some:
        yield recall_figure(_rates(some, length), length)
