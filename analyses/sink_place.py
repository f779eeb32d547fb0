"""Whether a sink stays at the first place when another token stands there, or goes with the token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probe import chart
from probe.analyses.figures.sinks import uniform_importance
from probe.analyses.measures.sink_reading import SinkReading, sink_readings
from probe.analysis import Needs, analysis
from probe.errors import UsageError
from probe.finding import Figure, Finding, Interval, Measurement, Verdict
from probe.intervals import FEWEST_PROMPTS, cluster_bootstrap, percentiles, resamples
from probe.selection import LeftOut, fact, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

Floats = NDArray[np.float64]

QUESTION = "Does the sink stay at the first place when another token stands there?"
SOURCE = (
    "Importance of a key: Gu et al. 2024, arXiv 2410.10781, section 3.1; moving or leaving out what stands first, and "
    "the share of the sink that stays: this toolkit's own, after Xiao et al. 2023 (2309.17453, section 3.1)"
)
_HEADS: Final = 64


def _needs(*, horizon: int = 64, **_: Any) -> Needs:
    return {"received_mass": {"horizon": horizon}}


@analysis(question=QUESTION, source=SOURCE, needs=_needs)
def sink_place(
    run: Run | Trace | Iterable[Trace],
    *,
    epsilon: float = 0.3,
    horizon: int = 64,
    least_excess: float = 0.05,
    seed: int = 0,
) -> Finding:
    """Measure how much of a sink stays at the first place when the first token is moved, and how much goes with it.

    The workload `plain_text` gives each text three times: as it is, with its first token put further in (`first_token:
    moved`), and without it (`dropped`). A key's importance is its mean probability over the queries from itself to the
    `horizon`-th; its excess is what it has above uniform attention. What stays is the excess of the first place in the
    moved text over that in the text as it is; what goes is the same for the token where it then stands. Both are over
    the heads whose first token's importance is above `epsilon` in every other prompt (the strongest head, where none
    is), and measured in the prompts between.

    Supported: with 95 % certainty more than half stays; refuted: less than half. Without a sink of at least
    `least_excess` there is nothing to move: inconclusive. Raises MissingStatistic where `received_mass` with this
    horizon was not captured.

    What it does not mean: that the sink stays says that it belongs to the place and not to the token, on these texts;
    it does not say what the sink is for. A token that was a special one in training and now stands further in may have
    made the difference by being there.
    """
    if not 0 < epsilon < 1 or horizon < 8 or not 0 < least_excess < 1:
        raise UsageError(
            f"epsilon {epsilon}, horizon {horizon}, least_excess {least_excess}: expected shares, 8 or more"
        )
    left_out = LeftOut()
    traces = selected(run, role=None)
    told = {"kept", "moved", "dropped"}
    concerned = [trace for trace in traces if fact(trace, "first_token") in told and not trace.facts.get("draw")]
    found = {reading.unit: reading for reading in sink_readings(concerned, horizon, left_out)}
    texts: dict[str, dict[str, tuple[Trace, SinkReading]]] = {}
    for trace in concerned:
        if trace.unit in found:
            texts.setdefault(trace.sample.name, {})[str(fact(trace, "first_token"))] = (trace, found[trace.unit])
    whole = {name: text for name, text in sorted(texts.items()) if {"kept", "moved"} <= set(text)}
    left_out.reasons |= (
        {"the text was not read both as it is and with its first token moved": n}
        if (n := len(texts) - len(whole))
        else {}
    )
    parameters: dict[str, JsonValue] = {
        "epsilon": epsilon,
        "horizon": horizon,
        "least_excess": least_excess,
        "seed": seed,
    }
    said: dict[str, Any] = {
        "analysis": "sink_place",
        "question": QUESTION,
        "definition": "Importance of the first place above uniform attention, in texts whose first token was moved, "
        "over the same in the texts as they are.",
        "source": SOURCE,
        "parameters": parameters,
        "evidence": tuple(trace.unit for text in whole.values() for trace, _ in text.values()),
    }
    name = "share of the sink that stays at the first place"
    if len(whole) < 2 * FEWEST_PROMPTS:
        return Finding(
            **said,
            headline="Whether the sink belongs to the place cannot be told",
            claim=f"{len(whole)} texts were read both as they are and with their first token moved; "
            f"{2 * FEWEST_PROMPTS} are needed, half of them to choose heads.",
            verdict="inconclusive",
            measured=Measurement(name=name, value=None, n=len(whole), dropped=left_out.total),
            notes=(*left_out.notes(), "Conditions with first_token: moved are needed, of the workload plain_text."),
        )
    return _finding(said, name, whole, left_out, epsilon, horizon, least_excess, seed)


def _finding(
    said: dict[str, Any],
    name: str,
    whole: Mapping[str, Mapping[str, tuple[Trace, SinkReading]]],
    left_out: LeftOut,
    epsilon: float,
    horizon: int,
    least_excess: float,
    seed: int,
) -> Finding:
    texts = list(whole.values())
    chosen_on, tested = texts[::2], texts[1::2]
    importance = np.mean([text["kept"][1].alpha[..., 0] for text in chosen_on], axis=0)
    heads = [(int(a), int(b)) for a, b in np.argwhere(importance > epsilon)]
    heads.sort(key=lambda head: -float(importance[head]))
    none_above = not heads
    if none_above:
        layer, head = np.unravel_index(int(importance.argmax()), importance.shape)
        heads = [(int(layer), int(head))]
    kept = _excess(tested, "kept", heads, horizon, 0)
    stays = _excess(tested, "moved", heads, horizon, 0)
    places = [text["moved"][0].sample.span("first_token").start for text in tested]
    goes = _excess(tested, "moved", heads, horizon, places)
    n = len(tested)
    prompts = [text["kept"][0].sample.name for text in tested]
    sink = cluster_bootstrap(kept, prompts, seed=seed)
    assert sink is not None
    there = sink.low > least_excess
    value, interval = _ratio(stays, kept, seed) if there else (None, None)
    verdict: Verdict = "inconclusive"
    if interval is not None:
        verdict = "supported" if interval.low > 0.5 else "refuted" if interval.high < 0.5 else "inconclusive"
    details = [
        Measurement(name="excess of the first token, text as it is", value=float(kept.mean()), interval=sink, n=n)
    ]
    with_token: float | None = None
    if there:
        with_token, its = _ratio(goes, kept, seed)
        details.append(Measurement(name="share that goes with the token", value=with_token, interval=its, n=n))
    without = [text for text in tested if "dropped" in text]
    if there and len(without) >= FEWEST_PROMPTS:
        base = _excess(without, "kept", heads, horizon, 0)
        left, ends = _ratio(_excess(without, "dropped", heads, horizon, 0), base, seed)
        label = "share that the first place has where the token is left out"
        details.append(Measurement(name=label, value=left, interval=ends, n=len(without)))
    details += _losses(texts, seed)
    which = f"{len(heads)} head{'' if len(heads) == 1 else 's'}"
    at = f"position {places[0]:,}" if len(set(places)) == 1 else "another place"
    if value is None:
        claim = f"No sink stands at the first token that could be moved: its excess is {details[0]} in {which}."
    else:
        claim = (
            f"With the first token put at {at}, {value:.0%} {_percent(interval)} of its excess attention stays at the "
            f"first place and {with_token:.0%} goes with it ({which}, n = {n} texts)."
        )
    return Finding(
        **said,
        headline={
            "supported": "The sink belongs to the first place",
            "refuted": "The sink goes with the token" if (with_token or 0) > 0.5 else "The sink does not stay",
            "inconclusive": "Whether the sink belongs to the place cannot be told",
        }[verdict],
        claim=claim,
        verdict=verdict,
        measured=Measurement(name=name, value=value, interval=interval, n=n, dropped=left_out.total),
        control=Measurement(name="excess under uniform attention", value=0.0, n=n),
        details=tuple(details),
        columns=("layer", "head", "as_it_is", "first_place_moved", "token_moved"),
        table=tuple(_rows(tested, heads[:_HEADS], places)),
        figures=(_figure(tested, heads, horizon),),
        notes=(
            *left_out.notes(),
            f"Heads were chosen on {len(chosen_on)} texts and measured on {n} others."
            + (f" None passes {epsilon:g}: the strongest was taken." if none_above else ""),
            *([f"Below an excess of {least_excess:g} there is nothing to be moved."] if not there else []),
        ),
    )


def _excess(
    texts: Sequence[Mapping[str, tuple[Trace, SinkReading]]],
    how: str,
    heads: Sequence[tuple[int, int]],
    horizon: int,
    place: int | Sequence[int],
) -> Floats:
    """Return each text's importance of the key at `place` above uniform attention, mean over heads, `[text]`."""
    places = [place] * len(texts) if isinstance(place, int) else place
    rows = []
    for text, at in zip(texts, places, strict=True):
        reading = text[how][1]
        if at >= reading.alpha.shape[-1]:
            raise UsageError(
                f"the first token was moved to {at}: importance is known up to position {reading.alpha.shape[-1] - 1} "
                f"(half of the horizon of {horizon} queries)"
            )
        uniform = [uniform_importance(horizon, int(reading.windows[layer]))[at] for layer, _ in heads]
        rows.append(np.mean([reading.alpha[layer, head, at] for layer, head in heads]) - np.mean(uniform))
    return np.asarray(rows, np.float64)


def _ratio(part: Floats, whole: Floats, seed: int) -> tuple[float, Interval]:
    """Return the ratio of two means over texts, and its interval by resampling texts."""
    weights = resamples(len(part), seed=seed)
    low, high = percentiles((weights @ part) / (weights @ whole))
    interval = Interval(low=float(low), high=float(high), method="bootstrap over prompts, ratio of means")
    return float(part.mean() / whole.mean()), interval


def _losses(texts: Sequence[Mapping[str, tuple[Trace, SinkReading]]], seed: int) -> list[Measurement]:
    """Return what moving and leaving out the first token does to the loss of the words that follow the text."""
    found = []
    for how, words in (("moved", "with the first token moved"), ("dropped", "without the first token")):
        pairs = []
        for text in texts:
            if how not in text:
                continue
            losses = [text[each][0].outcome for each in (how, "kept")]
            numbers = [None if outcome is None else outcome.answer_loss for outcome in losses]
            if all(number is not None and np.isfinite(number) for number in numbers):
                pairs.append((text["kept"][0].sample.name, float(numbers[0] or 0.0) - float(numbers[1] or 0.0)))
        if len(pairs) >= 2:
            names, differences = [name for name, _ in pairs], [number for _, number in pairs]
            interval = cluster_bootstrap(differences, names, seed=seed)
            label = f"loss of what follows {words}, less as it is"
            found.append(
                Measurement(name=label, value=float(np.mean(differences)), unit="nats", interval=interval, n=len(pairs))
            )
    return found


def _percent(interval: Interval | None) -> str:
    return "" if interval is None else f"[{interval.low:.0%}, {interval.high:.0%}]"


def _rows(
    texts: Sequence[Mapping[str, tuple[Trace, SinkReading]]],
    heads: Sequence[tuple[int, int]],
    places: Sequence[int],
) -> Iterable[tuple[JsonValue, ...]]:
    for layer, head in heads:
        of = {how: [text[how][1].alpha[layer, head] for text in texts] for how in ("kept", "moved")}
        there = [alpha[at] for alpha, at in zip(of["moved"], places, strict=True)]
        numbers = (np.mean([a[0] for a in of["kept"]]), np.mean([a[0] for a in of["moved"]]), np.mean(there))
        yield layer, head, *(float(f"{number:.4g}") for number in numbers)


def _figure(
    texts: Sequence[Mapping[str, tuple[Trace, SinkReading]]], heads: Sequence[tuple[int, int]], horizon: int
) -> Figure:
    data = []
    styles = (("kept", "as it is", chart.ACCENT, "solid"), ("moved", "first token moved", chart.WARN, "dot"))
    for how, words, color, dash in (*styles, ("dropped", "first token left out", chart.QUIET, "dash")):
        some = [text[how][1].alpha for text in texts if how in text]
        if some:
            mean = np.mean([[alpha[head] for head in heads] for alpha in some], axis=(0, 1))
            data.append(
                chart.line(
                    words,
                    np.arange(len(mean)),
                    mean,
                    color=color,
                    dash=dash,
                    hovertemplate="position %{x}: %{y:.3f}<extra></extra>",
                )
            )
    return chart.figure(
        "sink_place",
        "Where the sink is when the first token is not",
        f"Mean probability that a position receives from the queries from itself to the {horizon}th, over "
        f"{len(heads)} head{'' if len(heads) == 1 else 's'} and {len(texts)} texts.",
        data,
        {"xaxis": chart.axis("position"), "yaxis": chart.axis("attention received", rangemode="tozero")},
    )
