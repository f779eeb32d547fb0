"""What removing more and more of the found heads does, beside as many others, dose by dose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import JsonValue
from scipy import stats

from probe import chart
from probe.analyses.measures.ablation_effect import difference, mean_over_draws, no_narrower
from probe.analyses.measures.ablation_reading import AblationReading, controls_of, read
from probe.analysis import analysis
from probe.finding import Comparison, Figure, Finding, Interval, Measurement, Verdict
from probe.intervals import FEWEST_PROMPTS, clopper_pearson, p_text, sign_flip
from probe.selection import LeftOut, answered, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

QUESTION = "From how many of the found heads on does removing them break the answer, where removing others does not?"
SOURCE = (
    "Masking the top 2, 5, 10, … retrieval heads against random ones: Wu et al. 2024, arXiv 2404.15574, section 4; "
    "matched draws, paired tests, false-discovery rate over doses and held-out samples: this toolkit's own"
)
_COLUMNS = (
    "num_heads", "condition", "num_prompts", "num_draws", "accuracy", "accuracy_low", "accuracy_high",
    "accuracy_others", "difference", "difference_low", "difference_high", "q_value",
    "answer_loss_difference", "answer_loss_low", "answer_loss_high",
    "text_loss_difference", "text_loss_low", "text_loss_high",
)  # fmt: skip


@dataclass(frozen=True)
class _Dose:
    """One number of removed heads: what became of the answers, and what of the text."""

    condition: str
    reading: AblationReading
    accuracy: float
    ends: Interval
    others: float
    others_ends: Interval | None
    less: float
    interval: Interval | None
    p: float | None
    losses: dict[str, tuple[float, Interval | None]]
    """Treatment less control in nats per token, by quantity; absent where it was not measured."""

    @property
    def num_heads(self) -> int:
        return len(self.reading.heads)

    @property
    def beyond_draws(self) -> bool:
        """Whether fewer answers are right than one more draw of others would leave, with 97.5 % certainty."""
        draws = np.nanmean(self.reading.control["accuracy"], axis=0)
        if len(draws) < 3:
            return False
        reach = float(stats.t.ppf(0.975, len(draws) - 1)) * draws.std(ddof=1) * np.sqrt(1 + 1 / len(draws))
        return bool(self.accuracy < draws.mean() - reach)


@analysis(question=QUESTION, source=SOURCE)
def ablation_doses(
    run: Run | Trace | Iterable[Trace],
    *,
    margin: float = 10.0,
    half: Literal["find", "test", "both"] | None = None,
    seed: int = 0,
) -> Finding:
    """Compare, for each number of found heads removed, right answers and losses with as many others removed.

    Each treatment is held against its own matched control, paired by prompt: mean over the control's draws, interval
    by resampling prompts and draws, sign-flip test, and Benjamini and Hochberg's adjustment over the doses. The
    headline is the least number of heads whose removal costs right answers: interval below 0, q < 0.05, and fewer right
    answers than one more random draw would leave (below its 95 % prediction interval). Supported: there is one.
    Refuted: at the largest dose the interval, no narrower than so few prompts allow, lies within `margin` percentage
    points of 0 while the control leaves more than that to break.

    Loss of the prompt's own text is the control task: predicting it needs no retrieval, so that a model that merely
    broke shows there. Heads must be found on other samples than these (`retrieval_heads(half="find")`).

    What it does not mean: the least dose is that of these heads in their order of score; other heads may do as much
    with fewer. Refuted says that this many do not matter beyond the margin, not that more would not, and heads that
    stand in for each other hide.
    """
    left_out = LeftOut()
    traces = selected(run, role="treatment", half=half)
    controls = answered(selected(run, role="control", half=half), left_out)
    untouched = answered(selected(run, role="baseline", half=half), left_out)
    found: list[_Dose] = []
    evidence: list[str] = []
    for condition in sorted({trace.condition for trace in traces}):
        treated = answered([trace for trace in traces if trace.condition == condition], left_out)
        own, _ = controls_of(condition, controls)
        reading = read(treated, own, untouched)
        if reading is None or not reading.heads:
            left_out.add("a condition without heads, or without a control on the same prompts")
            continue
        found.append(_dose(condition, reading, seed))
        evidence += [trace.unit for trace, _ in (*treated, *own) if trace.sample.name in reading.prompts]
    found.sort(key=lambda dose: (dose.num_heads, dose.condition))
    parameters: dict[str, JsonValue] = {"margin": margin, "half": half, "seed": seed}
    said: dict[str, Any] = {
        "analysis": "ablation_doses",
        "question": QUESTION,
        "definition": "Least number of found heads whose removal leaves fewer right answers than that of as many "
        "others of the same layers (mean over random draws), paired by prompt.",
        "source": SOURCE,
        "parameters": parameters,
        "evidence": tuple(evidence),
    }
    name = "least number of found heads whose removal breaks answers"
    if not found:
        return Finding(
            **said,
            headline="What a dose of removed heads does cannot be told",
            claim="No prompt was answered both with found heads removed and with others removed.",
            verdict="inconclusive",
            measured=Measurement(name=name, value=None, n=0, dropped=left_out.total),
            notes=(*left_out.notes(), "It needs traces with the roles treatment and control, their heads on record."),
        )
    return _finding(said, name, found, left_out, margin)


def _dose(condition: str, reading: AblationReading, seed: int) -> _Dose:
    n, right = len(reading.prompts), reading.treatment["accuracy"] > 50
    exact = clopper_pearson(int(right.sum()), n)
    assert exact is not None
    others, others_ends = mean_over_draws(reading.control["accuracy"], (0.0, 100.0), seed)
    less, interval, each = difference(reading, "accuracy", seed)
    losses = {}
    for key in ("answer_loss", "text_loss"):
        value, ends, known = difference(reading, key, seed)
        if len(known):
            losses[key] = (value, ends)
    return _Dose(
        condition,
        reading,
        float(100 * right.mean()),
        exact.model_copy(update={"low": 100 * exact.low, "high": 100 * exact.high}),
        others,
        others_ends,
        less,
        interval,
        sign_flip(each, seed=seed),
        losses,
    )


def _finding(said: dict[str, Any], name: str, found: list[_Dose], left_out: LeftOut, margin: float) -> Finding:
    adjusted = stats.false_discovery_control([1.0 if dose.p is None else dose.p for dose in found])
    breaks = [
        dose
        for dose, q in zip(found, adjusted, strict=True)
        if q < 0.05
        and dose.interval is not None
        and dose.interval.high < 0
        and dose.beyond_draws
        and len(dose.reading.prompts) >= FEWEST_PROMPTS
    ]
    last = found[-1]
    verdict: Verdict = "supported" if breaks else "inconclusive"
    if not breaks and last.interval is not None and len(last.reading.prompts) >= FEWEST_PROMPTS:
        low, high = no_narrower(last.interval, len(last.reading.prompts))
        could = last.others_ends is not None and last.others_ends.low > margin
        if low >= -margin and high <= margin and could:
            verdict = "refuted"
    shown = breaks[0] if breaks else last
    n = len(shown.reading.prompts)
    heads = _heads(shown.num_heads)
    numbers = (
        f"{shown.accuracy:.0f} % [{shown.ends.low:.0f}, {shown.ends.high:.0f}] of answers are right, without as many "
        f"others {shown.others:.0f} % {_ends(shown.others_ends)}"
    )
    strongest = f"; without {_heads(last.num_heads)} {last.accuracy:.0f} %" if last is not shown else ""
    claims = {
        "supported": f"Removing {heads} is enough to break answers: without {'it' if shown.num_heads == 1 else 'them'} "
        f"{numbers} ({_p(shown)}, n = {n} prompts){strongest}.",
        "refuted": f"Removing as many as {heads} breaks no more than removing others: {numbers} (n = {n} prompts).",
        "inconclusive": f"Whether removing up to {heads} breaks answers cannot be told: {numbers} ({_p(shown)}, "
        f"n = {n} prompts).",
    }
    text = shown.losses.get("text_loss")
    few = any(len(dose.reading.draws) < 3 for dose in found)
    return Finding(
        **said,
        headline={
            "supported": f"{heads[0].upper() + heads[1:]} removed {'is' if shown.num_heads == 1 else 'are'} enough",
            "refuted": "No dose breaks the answer",
            "inconclusive": "What a dose of removed heads does cannot be told",
        }[verdict],
        claim=claims[verdict],
        verdict=verdict,
        measured=Measurement(
            name=name,
            value=float(breaks[0].num_heads) if breaks else None,
            # The doses that were tried bound it from both sides.
            interval=_between(found, breaks[0]) if breaks else None,
            unit="heads",
            n=n,
            dropped=left_out.total,
        ),
        control=Measurement(
            name="right answers with as many others removed",
            value=shown.others,
            unit="%",
            interval=shown.others_ends,
            n=n,
        ),
        comparison=Comparison(
            name="found heads less others, in percentage points; sign-flip permutation test, paired by prompt",
            difference=shown.less,
            interval=shown.interval,
            p_value=shown.p,
            p_is_bound=shown.p is not None and shown.p <= 1e-4,
            n=n,
        ),
        details=(
            *(
                Measurement(
                    name=f"right answers without {_heads(dose.num_heads)}",
                    value=dose.accuracy,
                    unit="%",
                    interval=dose.ends,
                    n=len(dose.reading.prompts),
                )
                for dose in found
            ),
            *(
                Measurement(
                    name=f"loss of the prompt's text without {_heads(dose.num_heads)}, less without others",
                    value=dose.losses["text_loss"][0],
                    unit="nats per token",
                    interval=dose.losses["text_loss"][1],
                    n=len(dose.reading.prompts),
                )
                for dose in found
                if "text_loss" in dose.losses
            ),
        ),
        columns=_COLUMNS,
        table=tuple(_row(dose, float(q)) for dose, q in zip(found, adjusted, strict=True)),
        figures=tuple(_figures(found)),
        notes=(
            *left_out.notes(),
            f"Refuted means: at the largest dose the two differ by less than {margin:g} percentage points with 95 % "
            "certainty, and there were right answers to break.",
            "The text's own loss is the control task; it does not tell the model apart from a broken one where it was "
            "not measured."
            if text is None
            else "The text's own loss is the control task: it needs no retrieval.",
            "A number of heads that was not tried is not known; the doses are the casebook's.",
            *(["Fewer than 3 draws of others: what another draw would do is not known."] if few else []),
        ),
    )


def _between(found: list[_Dose], first: _Dose) -> Interval:
    """Return the largest dose tried that did not break answers, and the first that did."""
    below = [dose.num_heads for dose in found if dose.num_heads < first.num_heads]
    return Interval(low=float(max(below, default=0)), high=float(first.num_heads), method="doses that were tried")


def _heads(number: int) -> str:
    return "one head" if number == 1 else f"{number} heads"


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f"[{interval.low:.0f}, {interval.high:.0f}]"


def _p(dose: _Dose) -> str:
    return "no p" if dose.p is None else p_text(dose.p, 9_999)


def _row(dose: _Dose, q: float) -> tuple[JsonValue, ...]:
    def rounded(value: float, interval: Interval | None) -> tuple[JsonValue, ...]:
        ends = (None, None) if interval is None else (interval.low, interval.high)
        return tuple(None if each is None or not np.isfinite(each) else float(f"{each:.4g}") for each in (value, *ends))

    nothing = (float("nan"), None)
    return (
        dose.num_heads,
        dose.condition,
        len(dose.reading.prompts),
        len(dose.reading.draws),
        *rounded(dose.accuracy, dose.ends),
        float(f"{dose.others:.4g}"),
        *rounded(dose.less, dose.interval),
        float(f"{q:.4g}"),
        *rounded(*dose.losses.get("answer_loss", nothing)),
        *rounded(*dose.losses.get("text_loss", nothing)),
    )


def _figures(found: list[_Dose]) -> Iterable[Figure]:
    at = [dose.num_heads for dose in found]
    hover = {"hovertemplate": "%{x} heads: %{y:.1%} right<extra></extra>"}
    before = found[0].reading.baseline
    data = []
    if before is not None and np.isfinite(before["accuracy"]).any():
        rate = float(np.nanmean(before["accuracy"])) / 100
        data.append(chart.line("nothing removed", [0, max(at)], [rate, rate], color=chart.QUIET, dash="dash", **hover))
    for name, values, ends, color, dash in (
        ("found heads removed", [d.accuracy for d in found], [d.ends for d in found], chart.ACCENT, "solid"),
        ("as many others removed", [d.others for d in found], [d.others_ends for d in found], chart.WARN, "dot"),
    ):
        low = [100 * float("nan") if each is None else each.low for each in ends]
        high = [100 * float("nan") if each is None else each.high for each in ends]
        scaled = (np.asarray(each) / 100 for each in (values, low, high))
        data.append(chart.line(name, at, *scaled, color=color, dash=dash, **hover))
    yield chart.figure(
        "dose_accuracy",
        "Right answers by how many heads are removed",
        f"Share of prompts answered right, with 95 % intervals; {len(found[0].reading.draws)} draws of others, of the "
        "same layers and of like output norm.",
        data,
        {"xaxis": chart.axis("heads removed", tickvals=at), "yaxis": chart.share_axis("answered right")},
    )
    for key, title, caption in (
        ("answer_loss", "What it costs the answer", "Loss of the right answer's tokens"),
        ("text_loss", "What it costs the text, which needs no retrieval", "Loss of the prompt's own text"),
    ):
        known = [dose for dose in found if key in dose.losses]
        if known:
            ends = [dose.losses[key][1] for dose in known]
            yield chart.figure(
                f"dose_{key}",
                title,
                f"{caption}, found heads removed less others removed, paired by prompt, with 95 % intervals.",
                [
                    chart.line(
                        "found less others",
                        [dose.num_heads for dose in known],
                        [dose.losses[key][0] for dose in known],
                        [np.nan if each is None else each.low for each in ends],
                        [np.nan if each is None else each.high for each in ends],
                        hovertemplate="%{x} heads: %{y:+.3f} nats<extra></extra>",
                    )
                ],
                {
                    "xaxis": chart.axis("heads removed", tickvals=[dose.num_heads for dose in known]),
                    "yaxis": chart.axis("nats per token, more than with others removed"),
                    "shapes": [chart.rule(y=0.0)],
                },
            )
