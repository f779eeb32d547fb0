"""What a condition does to attention, where both it and doing nothing were captured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from probe.analyses.measures.condition_effect import Pair
from probe.analyses.measures.condition_reading import PromptReading
from probe.finding import Measurement
from probe.intervals import cluster_bootstrap

if TYPE_CHECKING:
    from probe.storage.trace_store import Trace

NEEDLE: Final = "needle"
"""The span that holds the answer, in every workload that has one."""
QUANTITIES: Final = {
    "attention to the passage with the answer, from the rows that answer, mean over heads": "probability",
    "the same of the head that gives it most": "probability",
    "attention to the first four tokens, mean over heads and queries": "probability",
    "entropy of attention, mean over heads and queries": "nats",
}


def attention_changes(pairs: Sequence[Pair], seed: int) -> Iterator[Measurement]:
    """Yield each quantity with the condition less without it, over the prompts that were captured both ways."""
    captured = [(a, b) for a, b in pairs if a.captured and b.captured]
    if not captured:
        return
    with_it = np.array([_of(a) for a, _ in captured])
    without = np.array([_of(b) for _, b in captured])
    for index, (name, unit) in enumerate(QUANTITIES.items()):
        less = with_it[:, index] - without[:, index]
        known = np.isfinite(less)
        if not known.any():
            continue
        prompts = [a.prompt for (a, _), there in zip(captured, known, strict=True) if there]
        before = float(without[known, index].mean())
        yield Measurement(
            name=f"{name} (without: {before:.3g})",
            value=float(less[known].mean()),
            unit=unit,
            interval=cluster_bootstrap(less[known], prompts, seed=seed),
            n=int(known.sum()),
            dropped=int((~known).sum()),
        )


def _of(prompt: PromptReading) -> list[float]:
    """Return each quantity of a prompt, mean over the condition's draws; NaN where it was not captured."""
    return [float(np.mean(values)) for values in zip(*(_of_trace(t) for t in prompt.traces), strict=True)]


def _of_trace(trace: Trace) -> list[float]:
    to_needle = most = np.nan
    if "span_mass" in trace:
        mass = trace["span_mass"]
        if NEEDLE in mass["span"].to_numpy().tolist():
            by_head = mass.sel(span=NEEDLE).mean("row")
            to_needle, most = float(by_head.mean()), float(by_head.max())
    return [to_needle, most, *(float(trace[n].mean()) if n in trace else np.nan for n in ("sink_mass", "entropy"))]
