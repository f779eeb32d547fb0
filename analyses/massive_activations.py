"""Whether a few channels of a few tokens tower over the rest of the residual stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probe import chart
from probe.analysis import analysis
from probe.errors import UsageError
from probe.finding import Figure, Finding, Measurement, Suggestion, Verdict
from probe.intervals import FEWEST_PROMPTS, by_cluster, clopper_pearson, cluster_bootstrap
from probe.selection import LeftOut, holding, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

Floats = NDArray[np.float64]

QUESTION = "Do a few channels of a few tokens tower over the rest of the residual stream?"
SOURCE = (
    "Sun et al. 2024, Massive Activations in Large Language Models, arXiv 2402.17762: above 100, and above about 1,000 "
    "times the median magnitude of its hidden state; the verdict over prompts is this toolkit's own"
)


@dataclass(frozen=True)
class _Reading:
    """One prompt: its largest channel at each layer and token."""

    prompt: str
    unit: str
    value: Floats
    """Largest absolute channel, `[layer token]`."""
    ratio: Floats
    """That over the median absolute channel of the same token, `[layer token]`."""
    channel: NDArray[np.int64]
    """Which channel it is, `[layer token]`."""
    layers: tuple[int, ...]
    """The layers, as the model counts them."""

    @property
    def at(self) -> tuple[int, int]:
        """Layer and token of the largest ratio, the first on a tie."""
        layer, token = np.unravel_index(int(self.ratio.argmax()), self.ratio.shape)
        return int(layer), int(token)


@analysis(
    question=QUESTION,
    source=SOURCE,
    needs={"residual_max": {}, "residual_median": {}},
    does_without_attention=True,
)
def massive_activations(
    run: Run | Trace | Iterable[Trace],
    *,
    least: float = 100.0,
    times_median: float = 1000.0,
    seed: int = 0,
) -> Finding:
    """Measure in how many prompts some token's largest channel is massive, and where.

    Massive: its absolute value is above `least` and at least `times_median` times the median absolute channel of the
    same token after the same layer (Sun et al. 2024). The paper calls its bounds loose, and the absolute one means
    nothing for a small model: the ratio alone is reported beside it. Supported: with 95 % certainty most prompts hold
    one; refuted: with as much certainty most hold none (exact intervals over prompts; this toolkit's own verdict).
    Positions beyond the first are the control: a sink's token towers, an ordinary one does not. Where supported, it
    suggests to set the channels to zero after the layer that makes them (`set_activations`).

    What it does not mean: a massive activation is no fault: published models have them and need them. That setting them
    to zero breaks a model, or makes a sink go, is another question (`set_activations`). Refuted depends on `least`,
    which means nothing for a small model; see the ratio.
    """
    if not least >= 0 or not times_median > 1:
        raise UsageError(f"least {least} and times_median {times_median}: expected 0 or more, and more than 1")
    left_out = LeftOut()
    readings = list(_readings(selected(run), left_out))
    massive = [_massive(reading, least, times_median) for reading in readings]
    parameters: dict[str, JsonValue] = {"least": least, "times_median": times_median, "seed": seed}
    said: dict[str, Any] = {
        "analysis": "massive_activations",
        "question": QUESTION,
        "definition": f"Share of prompts in which some token's largest channel is above {least:g} and at least "
        f"{times_median:g} times the median channel of that token.",
        "source": SOURCE,
        "parameters": parameters,
        "evidence": tuple(reading.unit for reading in readings),
    }
    prompts = sorted({reading.prompt for reading in readings})
    n = len(prompts)
    hit = {reading.prompt: False for reading in readings}
    for reading, marks in zip(readings, massive, strict=True):
        hit[reading.prompt] |= bool(marks.any())
    count = sum(hit.values())
    interval = clopper_pearson(count, n)
    measured = Measurement(
        name="prompts with a massive activation",
        value=count / n if n else None,
        interval=interval,
        n=n,
        dropped=left_out.total,
    )
    if interval is None:
        reasons = "; ".join(left_out.reasons) or "there is no prompt"
        claim = f"No residual stream could be read: {reasons}."
        return Finding(**said, claim=claim, verdict="inconclusive", measured=measured, notes=left_out.notes())
    verdict: Verdict = "inconclusive"
    if n >= FEWEST_PROMPTS:
        verdict = "supported" if interval.low > 0.5 else "refuted" if interval.high < 0.5 else "inconclusive"
    elsewhere = sum(
        any(m[:, 1:].any() for r, m in zip(readings, massive, strict=True) if r.prompt == prompt) for prompt in prompts
    )
    control = Measurement(
        name="prompts with one at another token than the first",
        value=elsewhere / n,
        interval=clopper_pearson(elsewhere, n),
        n=n,
    )
    details, where = _details(readings, seed)
    largest = details[0]
    share = f"{count} of {n} prompts [{interval.low:.0%}, {interval.high:.0%}]"
    ends = f" [{_times(largest.interval.low)}, {_times(largest.interval.high)}]" if largest.interval else ""
    times = f"{_times(largest.value or 0.0)}{ends} times its token's median"
    claims = {
        "supported": f"Massive activations stand in {share}: the largest channel is {times}, {where}.",
        "refuted": f"Massive activations stand in {share}: the largest channel is only {times}.",
        "inconclusive": f"Whether most prompts hold massive activations cannot be told: {share} do; the largest "
        f"channel is {times}.",
    }
    few = f"A verdict needs {FEWEST_PROMPTS} prompts, and 6 that agree for 95 % certainty that most do."
    return Finding(
        **said,
        headline={
            "supported": "A few channels tower over the rest",
            "refuted": "No massive activations",
            "inconclusive": "Whether there are massive activations cannot be told",
        }[verdict],
        claim=claims[verdict],
        verdict=verdict,
        measured=measured,
        control=control,
        details=details,
        columns=("layer", "first_token_ratio", "other_tokens_ratio", "largest_value", "its_token", "its_channel"),
        table=tuple(_rows(readings)),
        figures=(_figure(readings, times_median),),
        suggests=tuple(_suggestions(readings, massive, least, times_median)) if verdict == "supported" else (),
        notes=(*left_out.notes(), *([few] if verdict == "inconclusive" else [])),
    )


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"


def _readings(traces: Sequence[Trace], left_out: LeftOut) -> Iterator[_Reading]:
    usable = []
    for trace in traces:
        if trace.outcome is not None and trace.outcome.failed:
            left_out.add("the unit failed")
        else:
            usable.append(trace)
    for trace in holding(holding(usable, "residual_max", left_out), "residual_median", left_out):
        arrays = [trace[name] for name in ("residual_max", "residual_median", "residual_max_channel")]
        if any("token" not in array.dims for array in arrays):
            left_out.add("the residual stream was pooled over blocks (capture it with pool_tokens none)")
            continue
        value, median, channel = (array.transpose("layer", "token").to_numpy() for array in arrays)
        if not (np.isfinite(value).all() and (median > 0).all()):
            left_out.add("the residual stream was not finite, or its median was 0")
            continue
        value, layers = value.astype(np.float64), tuple(arrays[0]["layer"].to_numpy().tolist())
        yield _Reading(trace.sample.name, trace.unit, value, value / median, channel.astype(np.int64), layers)


def _massive(reading: _Reading, least: float, times_median: float) -> NDArray[np.bool_]:
    return (reading.value > least) & (reading.ratio >= times_median)


def _details(readings: list[_Reading], seed: int) -> tuple[tuple[Measurement, ...], str]:
    """Return numbers beside the share, the largest ratio in front, and where it stands in words."""
    prompts = [reading.prompt for reading in readings]

    def mean(name: str, values: list[float], unit: str = "") -> Measurement:
        value = float(by_cluster(values, prompts).mean())
        interval = cluster_bootstrap(values, prompts, seed=seed)
        return Measurement(name=name, value=value, unit=unit, interval=interval, n=len(set(prompts)))

    places = [reading.at for reading in readings]
    first = sum(token == 0 for _, token in places)
    channels = [int(reading.channel[at]) for reading, at in zip(readings, places, strict=True)]
    channel, often = max(((c, channels.count(c)) for c in set(channels)), key=lambda pair: (pair[1], -pair[0]))
    layers = sorted(layer for layer, _ in places)
    between = f"layer {layers[0]}" if layers[0] == layers[-1] else f"layers {layers[0]} to {layers[-1]}"
    where = (
        f"after {between}, at the first token in {first} of {len(readings)} texts and in channel {channel} in {often}"
    )
    others = [float(r.ratio[:, 1:].max()) if r.ratio.shape[1] > 1 else float(r.ratio.max()) for r in readings]
    return (
        mean("largest channel over its token's median", [float(r.ratio.max()) for r in readings]),
        mean("the same at the first token", [float(r.ratio[:, 0].max()) for r in readings]),
        mean("the same at any other token", others),
        mean("the same at the median token of the last layer", [float(np.median(r.ratio[-1])) for r in readings]),
        mean(
            "absolute value of that largest channel",
            [float(r.value[at]) for r, at in zip(readings, places, strict=True)],
        ),
    ), where


def _suggestions(
    readings: list[_Reading], massive: list[NDArray[np.bool_]], least: float, times_median: float
) -> Iterator[Suggestion]:
    """Suggest to set the channels to zero after the layer that makes them, in most prompts the first to show them."""
    first = [int(marks.any(-1).argmax()) for marks in massive if marks.any()]
    index = max(set(first), key=lambda at: (first.count(at), -at))
    channels = sorted({int(c) for r, m in zip(readings, massive, strict=True) for c in r.channel[index][m[index]]})
    layer = readings[0].layers[index]
    fields: dict[str, JsonValue] = {"layer": layer, "channels": [*channels], "values": "zero", "positions": "massive"}
    yield Suggestion(
        intervention="set_activations",
        fields={**fields, "least": least, "times_median": times_median},
        reason=f"After layer {layer} they first stand in channels {', '.join(map(str, channels))}: what is the model "
        "without them, and what with their mean (values mean, with a reference)?",
    )


def _rows(readings: list[_Reading]) -> Iterator[tuple[JsonValue, ...]]:
    for layer in range(min(len(reading.ratio) for reading in readings)):
        top = max(readings, key=lambda reading: float(reading.ratio[layer].max()))
        token = int(top.ratio[layer].argmax())
        first = float(np.mean([reading.ratio[layer, 0] for reading in readings]))
        rest = float(np.mean([r.ratio[layer, 1:].max() for r in readings if r.ratio.shape[1] > 1] or [0.0]))
        shown = (float(f"{number:.4g}") for number in (first, rest, float(top.value[layer, token])))
        yield layer, *shown, token, int(top.channel[layer, token])


def _figure(readings: list[_Reading], times_median: float) -> Figure:
    layers = np.arange(min(len(reading.ratio) for reading in readings))
    first = np.mean([reading.ratio[: len(layers), 0] for reading in readings], axis=0)
    some = [reading.ratio[: len(layers), 1:].max(axis=1) for reading in readings if reading.ratio.shape[1] > 1]
    others = np.mean(some or [first], axis=0)
    hover = {"hovertemplate": "after layer %{x}: %{y:.3g} times the median<extra></extra>"}
    data = [
        chart.line("first token", layers, first, **hover),
        chart.line("largest of the others", layers, others, color=chart.WARN, dash="dot", **hover),
    ]
    return chart.figure(
        "massive_activations",
        "How far the largest channel stands out, by layer",
        f"Largest absolute channel of the residual stream over the median of the same token, mean over {len(readings)} "
        f"texts. Dashed: {times_median:g} times, one of the paper's two bounds.",
        data,
        {
            "xaxis": chart.axis("after layer", dtick=max(1, len(layers) // 16)),
            "yaxis": chart.axis("largest channel ÷ median channel", type="log"),
            "shapes": [chart.rule(y=times_median)],
        },
    )
