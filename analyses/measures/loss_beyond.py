"""How much worse tokens are predicted beyond the training length than at its end, text by text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probe.analyses.measures.state_growth import one_sided
from probe.analyses.measures.state_readings import Floats
from probe.finding import Interval
from probe.intervals import cluster_bootstrap

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace


@dataclass(frozen=True)
class LossRise:
    """The mean loss from twice the training length on, less that of the training length's second half."""

    within: float
    """Mean loss of the training length's second half, in nats a token."""
    value: float
    """The rise, mean over texts, in nats a token."""
    interval: Interval | None
    p_value: float
    """One-sided, paired t test over texts."""
    n: int
    """Texts."""


def loss_rise(traces: Iterable[Trace], trained: int, seed: int = 0) -> LossRise | None:
    """Return the rise over texts whose loss was captured on both sides; None for fewer than two of them."""
    within, beyond, names = [], [], []
    for trace in traces:
        curve = losses(trace)
        if curve is None:
            continue
        loss, starts = curve
        before, after = (starts >= trained / 2) & (starts < trained), starts >= 2 * trained
        if before.any() and after.any():
            within.append(loss[before].mean())
            beyond.append(loss[after].mean())
            names.append(trace.sample.name)
    if len(names) < 2:
        return None
    rise = np.array(beyond) - np.array(within)
    return LossRise(
        within=float(np.mean(within)),
        value=float(rise.mean()),
        interval=cluster_bootstrap(rise, names, seed=seed),
        p_value=float(one_sided(rise[:, None], 0.0)[0]),
        n=len(names),
    )


def losses(trace: Trace) -> tuple[Floats, Floats] | None:
    """Return a text's loss and the position of each entry, where it is a number; None where it was not captured."""
    if "loss" not in trace:
        return None
    array = trace["loss"]
    starts = array[array.dims[0]].to_numpy() if array.dims[0] in array.coords else np.arange(array.sizes[array.dims[0]])
    loss = array.to_numpy().astype(np.float64)
    there = np.isfinite(loss)
    return (loss[there], np.asarray(starts, np.float64)[there]) if there.any() else None
