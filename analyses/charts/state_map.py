"""Where along the text a recurrent state is large: by layer, by head of a layer, and of one head in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from probe import chart
from probe.analyses.measures.state_sizes import (
    MEANINGS,
    Floats,
    Of,
    captured,
    state_sizes,
    state_values,
    step_values,
    training_length,
)
from probe.errors import MissingStatistic
from probe.finding import Figure

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

MOST_POINTS: Final = 1_000
"""Points of a line; more readings are pooled, each point the mean of some."""


def state_map(trace: Trace, of: Of = "variance", *, layer: int | None = None) -> Figure:
    """Draw how large the state is by tokens read, a row a layer; with `layer` a row a head of it.

    Raises MissingStatistic where nothing of the state was captured, saying what to capture.
    """
    sizes = state_sizes(trace, of, layer=layer)
    rows, values = sizes.rows[: chart.MOST_CELLS], sizes.values[: chart.MOST_CELLS]
    per_column = -(-len(sizes.tokens) // chart.MOST_CELLS)
    # Each column stands at the last tokens that it holds.
    pooled = _pooled(values, per_column, "max")
    tokens = sizes.tokens[np.minimum(np.arange(1, pooled.shape[1] + 1) * per_column, len(sizes.tokens)) - 1]
    with np.errstate(divide="ignore"):
        logs = np.log10(pooled)
    logs[~np.isfinite(logs)] = np.nan
    known = logs[np.isfinite(logs)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    which = "head" if layer is not None else "layer"
    cells = chart.heatmap(
        [],
        [str(row) for row in rows],
        logs,
        unit=f"log10 of the {of}",
        hover=f"{which} %{{y}}, %{{x:,}} tokens read<br>{of} %{{customdata}}<br>click: its profile",
        low=low,
        high=max(high, low + 1e-6),
    )
    cells |= {"x": tokens.astype(int).tolist(), "customdata": [[f"{v:.3g}" for v in row] for row in pooled.tolist()]}
    cells |= {"xgap": 0} if pooled.shape[1] > 64 else {}
    trained = training_length(trace)
    over = "" if layer is not None else ", the largest over the layer's heads"
    caption = f"The {MEANINGS[of]}{over}, after so many tokens; dark is large, on a logarithmic scale."
    if per_column > 1:
        caption += f" A column is the largest of {per_column} readings."
    if len(sizes.rows) > len(rows):
        caption += f" {len(rows)} of {len(sizes.rows)} {which}s are drawn."
    caption += _trained(trained, float(tokens[-1]) if len(tokens) else 0.0)
    title = f"Size of the state by {which} and position" + ("" if layer is None else f", layer {layer}")
    layout = {
        "height": int(np.clip(150 + 22 * len(rows), 250, 620)),
        "xaxis": chart.axis("tokens read", showgrid=False),
        "yaxis": chart.axis(which, type="category", showgrid=False, ticks="", showline=False),
        "shapes": _rule(trained, tokens, color=chart.WARN),
    }
    return chart.figure("state_map" if layer is None else "state_heads", title, caption, [cells], layout)


def state_profile(trace: Trace, *, layer: int, head: int) -> Figure:
    """Draw every quantity that was captured of one head's state by tokens read.

    Raises as `state_map` does, and UsageError for a layer or head that there is not.
    """
    there = captured(trace)
    if not there:
        # The reader's own error says what the model is, and what to capture.
        state_sizes(trace, "variance")
    sizes = [of for of in there if of != "mean"]
    data: list[chart.Trace] = []
    tokens: Floats = np.empty(0)
    pooling = 1
    for index, of in enumerate(there):
        values = state_values(trace, of, layer, head)
        tokens = state_sizes(trace, of, layer=layer, head=head).tokens
        pooling = -(-len(values) // MOST_POINTS)
        line = chart.line(
            MEANINGS[of].replace(", in absolute value", "") if of == "mean" else MEANINGS[of],
            _pooled(tokens[None], pooling, "max")[0],
            _pooled(values[None], pooling, "mean")[0],
            color=chart.SERIES[index],
            dash=chart.DASHES[index],
            symbol=chart.SYMBOLS[index],
            hovertemplate="%{x:,} tokens: %{y:.4g}<extra></extra>",
        )
        line |= {} if of in sizes else {"yaxis": "y2"}
        line |= {"mode": "lines"} if len(line["x"]) > 64 else {}
        data.append(line)
    trained = training_length(trace)
    both = "mean" in there and bool(sizes)
    upper = [0.42, 1.0] if both else [0.0, 1.0]
    lower = [0.0, 0.3] if both else [0.0, 1.0]
    layout: dict[str, Any] = {
        "height": 460,
        "xaxis": chart.axis("tokens read", anchor="y2" if "mean" in there else "y"),
        "yaxis": chart.axis("size (log)", type="log", domain=upper),
        "shapes": _rule(trained, tokens),
    }
    if "mean" in there:
        layout["yaxis2"] = chart.axis("mean entry", domain=lower, anchor="x")
    caption = f"What was read of the state S of layer {layer}, head {head}, after so many tokens."
    caption += f" A point is the mean of {pooling} readings." if pooling > 1 else ""
    caption += _trained(trained, float(tokens[-1]) if len(tokens) else 0.0)
    return chart.figure("state_profile", f"State of layer {layer}, head {head}", caption, data, layout)


def decay_profile(trace: Trace, *, layer: int, head: int) -> Figure:
    """Draw how much of one head's state each token forgets, 1 less its decay.

    Raises MissingStatistic where `decay` was not captured.
    """
    if "decay" not in trace.stored_names():
        raise MissingStatistic(
            f"decay was not captured in the unit {trace.unit!r}: add `decay` to a casebook's capture, or "
            "probe.trace(model, sample, statistics=['decay'])"
        )
    values, starts = step_values(trace, "decay", layer, head)
    pooling = -(-len(values) // MOST_POINTS)
    x = _pooled(starts[None], pooling, "mean")[0]
    # Stored as what is kept, which is seldom far from 1: what is forgotten can be told apart.
    lost = 1 - values
    mean = _pooled(lost[None], pooling, "mean")[0]
    data: list[chart.Trace] = []
    if pooling > 1:
        least, most = _pooled(lost[None], pooling, "min")[0], _pooled(lost[None], pooling, "max")[0]
        data += chart.band(x, least, most)
    hover = "token %{x:,}: %{y:.3g} forgotten<extra></extra>"
    line = chart.line("forgotten", x, mean, hovertemplate=hover, showlegend=False)
    data.append(line | {"mode": "lines"} if len(x) > 64 else line)
    trained = training_length(trace)
    kept = float(np.nanmean(np.log(np.maximum(values, 1e-300))))
    caption = "1 less the factor that multiplies the state at each token, mean over the state's entries."
    caption += f" After -1 / (mean of ln decay) = {-1 / kept:,.4g} tokens 1/e is left." if kept < 0 else ""
    caption += f" A point is the mean of {pooling} tokens, the band their range." if pooling > 1 else ""
    caption += _trained(trained, float(starts[-1]) if len(starts) else 0.0)
    return chart.figure(
        "decay_profile",
        f"Decay of layer {layer}, head {head}",
        caption,
        data,
        {
            "xaxis": chart.axis("token"),
            "yaxis": chart.axis("share forgotten at each token (log)", type="log"),
            "shapes": _rule(trained, starts),
        },
    )


def _pooled(values: Floats, by: int, how: str) -> Floats:
    """Return `[row place]` with each `by` consecutive places made one, the last of what is left; NaN counts not."""
    if by <= 1 or not values.size:
        return values
    width = -(-values.shape[1] // by) * by
    padded = np.full((len(values), width), np.nan)
    padded[:, : values.shape[1]] = values
    parts = padded.reshape(len(values), -1, by)
    there = ~np.isnan(parts)
    if how == "mean":
        total = np.where(there, parts, 0.0).sum(-1)
        return np.asarray(np.divide(total, there.sum(-1), out=np.full(total.shape, np.nan), where=there.any(-1)))
    worst = -np.inf if how == "max" else np.inf
    reduced = getattr(np.where(there, parts, worst), how)(-1)
    return np.where(there.any(-1), reduced, np.nan)


def _trained(trained: int | None, last: float) -> str:
    if trained is None:
        return " The model does not say how long its training texts were."
    if last <= trained:
        return f" The model was trained on texts of {trained:,} tokens; this one is no longer."
    return f" Dashed: the training length, {trained:,} tokens."


def _rule(trained: int | None, tokens: Floats, color: str = chart.QUIET) -> list[dict[str, Any]]:
    if trained is None or not len(tokens) or tokens[-1] <= trained:
        return []
    return [chart.rule(x=float(trained), color=color) | {"layer": "above"}]
