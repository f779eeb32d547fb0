"""How memory grows with length: the exponent of a power, and what a token adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from probe.benchmark.result import Bench, Measurement

FEWEST_LENGTHS = 3
"""A line through fewer points fits whatever they are."""


@dataclass(frozen=True)
class Growth:
    """A fit over the lengths of one case."""

    measurements: tuple[Measurement, ...]
    """What was fitted, shortest first."""
    exponent: float
    """Least-squares slope of log memory over log length: 1 is linear, 2 quadratic, below 1 where a constant part is
    large beside what a token adds."""
    bytes_per_token: float
    """Least-squares slope of memory over length."""


def growth(measurements: Sequence[Measurement]) -> Growth | None:
    """Fit the memory that was taken beyond the inputs; None for fewer than three lengths where some was."""
    points = [(m, m.extra_bytes) for m in sorted(measurements, key=lambda m: m.job.length)]
    used = [(m, extra) for m, extra in points if extra is not None and extra > 0]
    if len(used) < FEWEST_LENGTHS:
        return None
    lengths = [float(m.job.length) for m, _ in used]
    extras = [float(extra) for _, extra in used]
    return Growth(
        tuple(m for m, _ in used),
        exponent=_slope([math.log(n) for n in lengths], [math.log(extra) for extra in extras]),
        bytes_per_token=_slope(lengths, extras),
    )


def growths(bench: Bench) -> list[Growth]:
    """Return the fit of every eager and scan case over the lengths of a benchmark."""
    series: dict[tuple[str, str | None, str | None], list[Measurement]] = {}
    for measurement in bench.measurements:
        job = measurement.job
        if job.case in ("eager", "scan_after_flash", "scan_alone"):
            series.setdefault((job.case, job.statistics, job.engine), []).append(measurement)
    return [fit for fit in map(growth, series.values()) if fit is not None]


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - mean_x) ** 2 for a in x)
