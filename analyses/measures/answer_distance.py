"""What an ablation does to answers that stand far back, against those that stand near."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.ablation_reading import AblationReading, Floats
from probe.finding import Interval
from probe.intervals import percentiles, resamples

if TYPE_CHECKING:
    from probe.sample import Sample


def answer_distance(sample: Sample) -> int | None:
    """Return how many tokens before the prompt's end the answer stands; None where the sample does not say.

    It stands where the span `needle_value` begins, or else `needle` or `gold`.
    """
    starts = {span.name: span.start for span in reversed(sample.spans)}
    for name in ("needle_value", "needle", "gold"):
        if name in starts:
            return len(sample) - starts[name]
    return None


def of_prompts(reading: AblationReading, which: NDArray[np.bool_]) -> AblationReading:
    """Return what was read of these prompts alone."""
    return dataclasses.replace(
        reading,
        prompts=tuple(prompt for prompt, there in zip(reading.prompts, which, strict=True) if there),
        treatment={key: values[which] for key, values in reading.treatment.items()},
        control={key: values[which] for key, values in reading.control.items()},
        baseline=None if reading.baseline is None else {key: x[which] for key, x in reading.baseline.items()},
    )


def far_less_near(reading: AblationReading, far: NDArray[np.bool_], seed: int) -> tuple[float, Interval, Floats]:
    """Return the mean effect on far prompts less that on near ones, its interval, and each prompt's effect.

    The effect is treatment less the mean over the control's draws, in percentage points. Prompts are resampled within
    both groups, draws together for both; draws may miss prompts.
    """
    treatment, control = reading.treatment["accuracy"], reading.control["accuracy"]
    there = np.isfinite(control)
    each = np.asarray(treatment - np.nanmean(control, axis=1), np.float64)
    by_draw = resamples(control.shape[1], seed=seed + 1)
    weight = np.einsum("bd,pd->bp", by_draw, there)
    total = np.einsum("bd,pd->bp", by_draw, np.where(there, control, 0.0))
    drawn = np.where(weight > 0, treatment - total / np.maximum(weight, 1), 0.0)
    means = []
    for number, group in enumerate((far, ~far)):
        counted = resamples(int(group.sum()), seed=seed + 2 + number) * (weight[:, group] > 0)
        means.append((drawn[:, group] * counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1))
    low, high = percentiles(means[0] - means[1])
    interval = Interval(low=float(low), high=float(high), method="bootstrap over prompts of both groups, and draws")
    return float(each[far].mean() - each[~far].mean()), interval, each


def shuffled_p(each: Floats, far: NDArray[np.bool_], seed: int, draws: int = 4_999) -> float:
    """Return the two-sided permutation p-value of the difference between groups, with distances shuffled."""
    generator = np.random.default_rng(seed)
    observed = abs(each[far].mean() - each[~far].mean())
    order = generator.permuted(np.tile(far, (draws, 1)), axis=1)
    total, number = each.sum(), int(far.sum())
    there = order @ each
    apart = np.abs(there / number - (total - there) / (len(each) - number))
    return float((1 + (apart >= observed - 1e-9).sum()) / (1 + draws))
