"""How much more an ablation does than that of as many others: differences over prompts and draws, with intervals."""

from __future__ import annotations

import numpy as np

from probe.analyses.measures.ablation_reading import AblationReading, Floats
from probe.finding import Interval
from probe.intervals import all_agree, percentiles, resamples


def difference(reading: AblationReading, key: str, seed: int) -> tuple[float, Interval | None, Floats]:
    """Return treatment less control, its interval over prompts and draws, and the difference of each prompt."""
    treatment, control = reading.treatment[key], reading.control[key]
    known = np.isfinite(treatment) & np.isfinite(control).any(axis=1)
    treatment, control = treatment[known], control[known]
    if not len(treatment):
        return float("nan"), None, treatment
    each = treatment - np.nanmean(control, axis=1)
    if len(each) < 2:
        return float(each.mean()), None, each
    there = np.isfinite(control)
    by_prompt = resamples(len(each), seed=seed)
    by_draw = resamples(control.shape[1], seed=seed + 1)
    weight = np.einsum("bd,pd->bp", by_draw, there)
    total = np.einsum("bd,pd->bp", by_draw, np.where(there, control, 0.0))
    # A resample without any of a prompt's draws says nothing of that prompt.
    drawn = np.where(weight > 0, treatment - total / np.maximum(weight, 1), 0.0)
    counted = by_prompt * (weight > 0)
    low, high = percentiles((drawn * counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1))
    method = "bootstrap over prompts and draws"
    if key == "accuracy" and np.ptp(each) == 0:
        low, high = all_agree(each[0], len(each), (-100.0, 100.0))
        method = "exact bound, as all prompts agree"
    return float(each.mean()), Interval(low=float(low), high=float(high), method=method), each


def no_narrower(interval: Interval, n: int) -> tuple[float, float]:
    """Widen a bootstrap's interval to what `n` prompts that all agree would give: a few odd ones make it no surer."""
    low, high = (float(end) for end in all_agree(0.0, n, (-100.0, 100.0)))
    return min(interval.low, low), max(interval.high, high)


def mean_over_draws(values: Floats, bounds: tuple[float, float] | None, seed: int) -> tuple[float, Interval | None]:
    """Return the mean of `[prompt draw]` values over draws, then prompts, with its interval over both."""
    nothing = {"accuracy": np.zeros(len(values))}
    reading = AblationReading((), (), nothing, {"accuracy": values}, None, (), "", None)
    value, interval, each = difference(reading, "accuracy", seed)
    if interval is None:
        return 0.0 - value, None
    low, high = -interval.high, -interval.low
    if bounds is not None and len(each) and np.ptp(each) == 0:
        low, high = (float(end) for end in all_agree(-each[0], len(each), bounds))
    return 0.0 - value, interval.model_copy(update={"low": low, "high": high})
