"""Whether heads park their attention on the first token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probe.analyses.figures.sinks import sink_figures, uniform_importance
from probe.analyses.measures.sink_reading import NUM_RECENT, NUM_SINK, SinkReading, sink_readings
from probe.analysis import Needs, analysis
from probe.errors import UsageError
from probe.finding import Comparison, Finding, Interval, Measurement, Verdict
from probe.intervals import FEWEST_PROMPTS, by_cluster, cluster_bootstrap, mean_ends
from probe.selection import LeftOut, selected

if TYPE_CHECKING:
    from probe.storage.trace_store import Run, Trace

Floats = NDArray[np.float64]

QUESTION = "Do heads park their attention on the first token?"
SOURCE = "Gu et al. 2024, When Attention Sink Emerges in Language Models, arXiv 2410.10781, section 3.1"


def _needs(*, horizon: int = 64, **_: Any) -> Needs:
    return {"received_mass": {"horizon": horizon}, "sink_mass": {}, "recent_mass": {}, "value_norm": {}}


@analysis(question=QUESTION, source=SOURCE, needs=_needs)
def attention_sinks(
    run: Run | Trace | Iterable[Trace],
    *,
    epsilon: float = 0.3,
    horizon: int = 64,
    margin: float = 1.0,
    seed: int = 0,
) -> Finding:
    """Measure the share of heads for which the first token is a sink: it takes above `epsilon` of the attention.

    A key's importance is its mean probability over the queries from itself to the `horizon`-th (T = 64 in the paper);
    the metric is the share, in percent, of prompts, layers and heads in which the first key's is above `epsilon`
    (Gu et al. 2024, section 3.1). Queries that a sliding window keeps from the key count, with probability 0.
    Supported: the share's interval lies above 0, which uniform attention gives; refuted: the share is at most `margin`
    percent, and every head's mean importance lies below `epsilon` with 95 % certainty. Prompts shorter than the horizon
    are left out and counted.

    Raises MissingStatistic where `received_mass` with this horizon was not captured.

    What it does not mean: a sink neither harms nor helps for all that is said here, and other tokens than the first may
    be one. The share depends on the horizon and on whether the tokenizer puts a special token first: compare models at
    the same.
    """
    if horizon <= 2 * NUM_SINK + 1:
        raise UsageError(f"horizon {horizon}: expected more than {2 * NUM_SINK + 1} queries")
    bound = float(uniform_importance(horizon)[0])
    if not bound < epsilon < 1:
        raise UsageError(
            f"epsilon {epsilon}: expected a share below 1, and above {bound:.3g}, which the first token gets within "
            f"{horizon} queries where attention is uniform"
        )
    left_out = LeftOut()
    readings = list(sink_readings(selected(run), horizon, left_out))
    parameters: dict[str, JsonValue] = {"epsilon": epsilon, "horizon": horizon, "margin": margin, "seed": seed}
    said: dict[str, Any] = {
        "analysis": "attention_sinks",
        "question": QUESTION,
        "definition": f"Share of prompts, layers and heads in which the first key's mean probability over the first "
        f"{horizon} queries is above {epsilon:g}.",
        "source": SOURCE,
        "parameters": parameters,
        "evidence": tuple(reading.unit for reading in readings),
    }
    if not readings:
        return Finding(
            **said,
            claim=_unmeasured(left_out),
            verdict="inconclusive",
            measured=Measurement(name="heads with a sink", value=None, unit="%", n=0, dropped=left_out.total),
            notes=left_out.notes(),
        )
    return _finding(said, readings, left_out, epsilon, horizon, margin, seed)


def _finding(
    said: dict[str, Any],
    readings: list[SinkReading],
    left_out: LeftOut,
    epsilon: float,
    horizon: int,
    margin: float,
    seed: int,
) -> Finding:
    prompts = [reading.prompt for reading in readings]
    alpha = by_cluster([reading.alpha for reading in readings], prompts)
    windows = readings[0].windows
    uniform = np.stack([uniform_importance(horizon, int(window)) for window in windows])

    def share(name: str, hits: list[float], dropped: int = 0) -> Measurement:
        interval = cluster_bootstrap(hits, prompts, bounds=(0.0, 1.0), seed=seed)
        mean = 100 * float(by_cluster(hits, prompts).mean())
        return Measurement(
            name=name, value=mean, unit="%", interval=_percentages(interval), n=len(alpha), dropped=dropped
        )

    measured = share(
        "heads whose first token is a sink",
        [float((r.alpha[..., 0] > epsilon).mean()) for r in readings],
        left_out.total,
    )
    expected = 100.0 * float((uniform[:, 0] > epsilon).mean())
    control = Measurement(
        name="heads, were attention uniform over what they see", value=expected, unit="%", n=len(alpha)
    )
    details = [
        share(
            f"heads with a sink on token {k} (counted from 0)",
            [float((r.alpha[..., k] > epsilon).mean()) for r in readings],
        )
        for k in range(1, NUM_SINK)
    ]
    elsewhere = [float((r.alpha[..., NUM_SINK:].max(axis=-1) > epsilon).mean()) for r in readings]
    details.append(share(f"heads with a sink among tokens {NUM_SINK} to {horizon // 2 - 1}", elsewhere))
    mean = alpha.mean(axis=0)[..., 0]
    low, high = mean_ends(alpha[..., 0], bounds=None, seed=seed)
    top = np.unravel_index(int(mean.argmax()), mean.shape)
    strongest = (int(top[0]), int(top[1]))
    details.append(
        Measurement(
            name=f"importance of the first token in head {strongest}, the largest",
            value=float(mean[top]),
            interval=Interval(low=float(low[top]), high=float(high[top]), method="bootstrap over prompts")
            if len(alpha) > 1
            else None,
            n=len(alpha),
        )
    )
    reached = np.flatnonzero((mean > epsilon).any(axis=1))
    details.append(
        Measurement(
            name=f"first layer with a head whose mean importance is above {epsilon:g}",
            value=float(reached[0]) if len(reached) else None,
            n=len(alpha),
        )
    )
    for window in np.unique(windows)[::-1]:
        layers = "" if (windows == window).all() else f" in layers {np.flatnonzero(windows == window).tolist()}"
        what = f" (window of {window} tokens)" if window < horizon else ""
        name = f"importance of the first token, were attention uniform{layers}{what}"
        value = float(uniform_importance(horizon, int(window))[0])
        details.append(Measurement(name=name, value=value, n=0))
    details += _masses(readings, seed)
    verdict: Verdict = "inconclusive"
    interval = measured.interval
    if interval is not None and measured.value is not None and len(alpha) >= FEWEST_PROMPTS:
        if interval.low > expected:
            verdict = "supported"
        elif measured.value <= margin and high.max() < epsilon:
            verdict = "refuted"
    num_heads = mean.size
    order = np.argsort(-mean, axis=None, kind="stable")[:256]
    where = [tuple(int(i) for i in np.unravel_index(int(index), mean.shape)) for index in order]
    hit = (alpha[..., 0] > epsilon).mean(axis=0)
    return Finding(
        **said,
        headline=_headline(measured, epsilon, verdict),
        claim=_claim(measured, mean, strongest, low, high, epsilon, verdict),
        verdict=verdict,
        measured=measured,
        control=control,
        comparison=Comparison(
            name="share of heads above that of uniform causal attention",
            difference=None if measured.value is None else measured.value - expected,
            interval=None
            if interval is None
            else interval.model_copy(update={"low": interval.low - expected, "high": interval.high - expected}),
            n=len(alpha),
        ),
        details=tuple(details),
        columns=("layer", "head", "importance_of_first_token", "low", "high", "share_of_prompts_above"),
        table=tuple((*at, *(float(f"{a[at]:.4g}") for a in (mean, low, high, hit))) for at in where),
        figures=tuple(sink_figures(alpha, uniform, _drains(readings), epsilon, horizon, seed)),
        notes=(
            *left_out.notes(),
            f"Used: {len(alpha)} prompt{'' if len(alpha) == 1 else 's'}, {num_heads} heads. Where each prompt gives as "
            "many heads, the share's interval is the exact bound on what other prompts may give.",
            f"Refuted means: at most {margin:g} % of heads, and every head's mean importance below {epsilon:g} with "
            "95 % certainty; supported: more heads than under uniform attention, with the same certainty.",
            "Uniform attention is over the keys that each layer's window lets a query see; a window longer than the "
            "horizon counts as none.",
            "The metric hangs on the horizon and on what stands first: without a special token at the beginning the "
            "sink may be another.",
            "Value norm of the first token over the median of the others: this toolkit's own ratio.",
        ),
    )


def _masses(readings: list[SinkReading], seed: int) -> Iterator[Measurement]:
    """Yield attention with and without the sink, and the first token's value norm, where they were captured."""

    def mean(name: str, values: list[tuple[str, float]], unit: str = "%") -> Measurement:
        prompts, numbers = [prompt for prompt, _ in values], [number for _, number in values]
        interval = cluster_bootstrap(numbers, prompts, seed=seed)
        value = float(by_cluster(numbers, prompts).mean())
        return Measurement(name=name, value=value, unit=unit, interval=interval, n=len(set(prompts)))

    first = [(r.prompt, 100 * float(r.first.mean())) for r in readings if r.first is not None]
    if first:
        yield mean(f"attention on the first {NUM_SINK} tokens, by queries past the horizon", first)
        uniform = [(r.prompt, 100 * r.first_uniform) for r in readings if r.first is not None]
        yield mean(f"attention on the first {NUM_SINK} tokens, by those queries, were it uniform", uniform)
    apart = [r for r in readings if r.recent is not None and r.first_there is not None]
    if apart:
        recent = [(r.prompt, 100 * float(r.recent.mean())) for r in apart if r.recent is not None]
        yield mean(f"attention on the last {NUM_RECENT} tokens, of all", recent)
        without = [
            (r.prompt, 100 * float(np.mean(r.recent / np.maximum(1 - r.first_there, 1e-6))))
            for r in apart
            if r.recent is not None and r.first_there is not None
        ]
        yield mean(f"attention on the last {NUM_RECENT} tokens, of what the first {NUM_SINK} leave", without)
    learned = [(r.prompt, 100 * float(r.learned.mean())) for r in readings if r.learned is not None]
    if learned:
        yield mean("share of the learned sink, which is no token, over all queries", learned)
    drain = [(r.prompt, float(r.drain.mean())) for r in readings if r.drain is not None]
    if drain:
        yield mean("value norm of the first token over the median of the others", drain, unit="")


def _drains(readings: list[SinkReading]) -> Floats | None:
    """Return the value norms' ratio by prompt, `[prompt layer]`; None where no prompt has it."""
    drains = [(r.prompt, r.drain) for r in readings if r.drain is not None]
    return by_cluster([drain for _, drain in drains], [prompt for prompt, _ in drains]) if drains else None


def _percentages(interval: Interval | None) -> Interval | None:
    return (
        None
        if interval is None
        else interval.model_copy(update={"low": 100 * interval.low, "high": 100 * interval.high})
    )


def _unmeasured(left_out: LeftOut) -> str:
    reasons = [f"{reason} ({number} of {left_out.total})" for reason, number in left_out.reasons.items()]
    return f"No sink could be measured: {'; '.join(reasons) or 'there is no prompt'}."


def _headline(measured: Measurement, epsilon: float, verdict: Verdict) -> str:
    if verdict == "refuted":
        return f"No head makes the first token a sink at ε = {epsilon:g}"
    if verdict == "inconclusive":
        return "Whether heads make the first token a sink cannot be told"
    return f"{_percent(measured.value or 0.0, 0)} % of heads park their attention on the first token"


def _percent(value: float, digits: int = 1) -> str:
    """Return a number without the sign of a rounded -0."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _claim(
    measured: Measurement,
    mean: Floats,
    strongest: tuple[int, int],
    low: Floats,
    high: Floats,
    epsilon: float,
    verdict: Verdict,
) -> str:
    n = f"n = {measured.n} prompt{'' if measured.n == 1 else 's'}"
    share = f"{_percent(measured.value or 0.0)} %"
    if measured.interval is not None:
        share += f" [{_percent(measured.interval.low)}, {_percent(measured.interval.high)}]"
    most = f"the strongest, head {strongest}, gives it {_percent(100 * mean[strongest], 0)} %"
    if measured.n > 1:
        most += f" [{_percent(100 * low[strongest], 0)}, {_percent(100 * high[strongest], 0)}]"
    if verdict == "refuted":
        return (
            f"No head parks above {100 * epsilon:g} % of its attention on the first token: {most}, and {share} of "
            f"heads pass {100 * epsilon:g} % in a single prompt ({n})."
        )
    told = "" if verdict == "supported" else "Whether heads make the first token a sink cannot be told: "
    return f"{told}{share} of heads give the first token above {100 * epsilon:g} % of their attention; {most} ({n})."
