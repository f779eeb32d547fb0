"""What a run holds of its recurrent layers' states: a number for each head after so many tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probe.selection import LeftOut, fact

if TYPE_CHECKING:
    import xarray as xr

    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]
Head = tuple[int, int]


@dataclass(frozen=True)
class StateReading:
    """The states of one text, of every head of a recurrent layer."""

    unit: str
    """The trace that holds it."""
    prompt: str
    """Name of the sample."""
    half: str | None
    """`find` or `test`; None where the run has no halves."""
    heads: tuple[Head, ...]
    """Layer and head of each row of the arrays."""
    tokens: Floats
    """`[reading]` How many tokens the state had read."""
    variance: Floats
    """`[head reading]` Variance of the state's entries."""
    mean: Floats
    """`[head reading]` Mean of the state's entries."""
    largest: Floats
    """`[head reading]` Largest absolute entry."""


def trained_length(traces: Iterable[Trace], given: int | None) -> int | None:
    """Return the training length in tokens: the one given, else what the traces' provenance says; None for neither.

    Where traces disagree (another model's are among them) nothing is said of it.
    """
    if given is not None:
        return given
    found: set[int] = set()
    for trace in traces:
        said = (trace.provenance.get("positions") or {}).get("training_length") or {}
        found.add(int(said.get("tokens") or 0))
    return found.pop() or None if len(found) == 1 else None


def state_readings(traces: Iterable[Trace], left_out: LeftOut) -> list[StateReading]:
    """Return the readings of every trace that has them, all of the same heads; what is left out is counted."""
    found: list[StateReading] = []
    for trace in traces:
        arrays = [_array(trace, f"state_{name}") for name in ("variance", "mean", "max")]
        if arrays[0] is None:
            left_out.add("no state of a recurrent layer was captured")
            continue
        variance, mean, largest = (_by_head(array) for array in arrays)
        there = ~np.isnan(variance).all(-1)
        layers, heads = np.nonzero(there)
        names = tuple(zip(layers.tolist(), heads.tolist(), strict=True))
        if not names or (found and names != found[0].heads):
            left_out.add("its heads are not those of the other traces" if names else "no layer recurs")
            continue
        if not all(np.isfinite(array[there]).all() for array in (variance, mean, largest)):
            left_out.add("its state is not finite")
            continue
        found.append(
            StateReading(
                unit=trace.unit,
                prompt=trace.sample.name,
                half=fact(trace, "half"),
                heads=names,
                tokens=arrays[0]["position"].to_numpy().astype(np.float64) + 1,
                variance=variance[there],
                mean=mean[there],
                largest=largest[there],
            )
        )
    return found


def recurrent_values(trace: Trace, name: str) -> tuple[Floats, Floats] | None:
    """Return a statistic by head and token, `[head token]`, and the position that each entry begins at; None without.

    Heads are in the order of `StateReading.heads`; an entry is a token, or the mean of a block of them.
    """
    if name not in trace:
        return None
    array: Any = trace[name]
    last = next(dim for dim in array.dims if dim not in ("layer", "state_head"))
    values = array.transpose("layer", "state_head", last).to_numpy().astype(np.float64)
    starts = array[last].to_numpy().astype(np.float64) if last in array.coords else np.arange(values.shape[-1])
    return values[~np.isnan(values).all(-1)], np.asarray(starts, np.float64)


def _array(trace: Trace, name: str) -> xr.DataArray | None:
    """Return a statistic of the state with the most readings, at whatever interval it was captured."""
    names = [str(each) for each in trace.dataset.data_vars if re.fullmatch(rf"{name}(_every_\d+)?", str(each))]
    arrays = [trace[each] for each in names]
    return max(arrays, key=lambda array: array.sizes["position"]) if arrays else None


def _by_head(array: xr.DataArray | None) -> Floats:
    if array is None:
        return np.empty((0, 0, 0))
    return array.transpose("layer", "state_head", "position").to_numpy().astype(np.float64)
