"""How large a recurrent state is after so many tokens, of one unit, read no further than it is shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from probe.errors import MissingStatistic, UsageError

if TYPE_CHECKING:
    from probe.storage.stored_array import StoredArray
    from probe.storage.trace_store import Trace

Floats = NDArray[np.float64]
Of = Literal["variance", "max", "mean", "norm"]
"""Variance, largest absolute entry, mean and Frobenius norm of the entries of a head's state."""

MEANINGS: dict[Of, str] = {
    "variance": "variance of the state's entries",
    "max": "largest absolute entry of the state",
    "mean": "mean of the state's entries, in absolute value",
    "norm": "norm of the state",
}


@dataclass(frozen=True)
class StateSizes:
    """A quantity of some heads' states."""

    rows: tuple[int, ...]
    """Layer, or head of one layer, of each row."""
    tokens: Floats
    """`[reading]` How many tokens the state had read."""
    values: Floats
    """`[row reading]` NaN where there is no such head."""


def recurrent_heads(trace: Trace) -> dict[int, int]:
    """Return the number of state heads of each recurrent layer; raises MissingStatistic in words where none is stored.

    The words say whether the model recurs at all, and what to capture.
    """
    names = trace.stored_names()
    if "num_state_heads" in names:
        layers, counts = trace.stored("layer"), trace.stored("num_state_heads")
        pairs = zip(layers.read((0, layers.shape[0])), counts.read((0, counts.shape[0])), strict=True)
        found = {int(layer): int(count) for layer, count in pairs if count > 0}
        if found:
            return found
    if trace.provenance.get("recurrent_layers"):
        raise MissingStatistic(f"nothing of the recurrent layers was captured in the unit {trace.unit!r}. {_CAPTURE}")
    raise MissingStatistic(
        f"{trace.provenance.get('model') or 'this model'} has no recurrent layer: it carries no state along the text, "
        f"its memory is the keys and values that it attends to. A recurrent model or a hybrid (Mamba, RWKV, Jamba, "
        f"Qwen3-Next …) fills this page: the casebooks state-collapse and state-rescue, or {_CAPTURE[0].lower()}"
        f"{_CAPTURE[1:]}"
    )


_CAPTURE = (
    "Capture it in a casebook (state_variance, state_mean, state_max, decay) or by probe.trace(model, sample, "
    "statistics=['state_variance', 'state_mean', 'state_max', 'decay'])."
)


def captured(trace: Trace) -> dict[Of, str]:
    """Return the quantities that a unit holds, each with the name of the array that has the most readings."""
    found: dict[Of, str] = {}
    names = trace.stored_names()
    for of in MEANINGS:
        own = [name for name in names if re.fullmatch(rf"state_{of}(_every_\d+)?", name)]
        if own:
            found[of] = max(own, key=lambda name: trace.stored(name).shape[-1])
    return found


def training_length(trace: Trace) -> int | None:
    """Return how many tokens the model's training texts had, as its provenance says; None where it does not."""
    said = (trace.provenance.get("positions") or {}).get("training_length") or {}
    return int(said.get("tokens") or 0) or None


def state_sizes(trace: Trace, of: Of = "variance", *, layer: int | None = None, head: int | None = None) -> StateSizes:
    """Return a quantity by layer, the largest over its heads; with `layer` by head of it; with `head` of that alone.

    Absolute values: what is large below 0 is large. Raises MissingStatistic where it was not captured, UsageError for
    a layer or head that there is not.
    """
    heads = recurrent_heads(trace)
    there = captured(trace)
    if of not in there:
        said = ", ".join(there) or "none"
        raise MissingStatistic(f"the unit {trace.unit!r} has no state_{of}; of the state it has {said}. {_CAPTURE}")
    array = trace.stored(there[of])
    index = {number: i for i, number in enumerate(_layers(trace))}
    tokens = trace.stored("position").read((0, array.shape[-1])).astype(np.float64) + 1
    if layer is None:
        # A chunk's layers at a time: all heads of all layers need not fit at once.
        starts = range(0, array.shape[0], array.chunks[0])
        parts = [_largest(np.abs(_read(array, (at, min(at + array.chunks[0], array.shape[0]))))) for at in starts]
        return StateSizes(tuple(heads), tokens, np.concatenate(parts)[[index[at] for at in heads]])
    check(heads, layer, head)
    span = (0, heads[layer]) if head is None else (head, head + 1)
    return StateSizes(tuple(range(*span)), tokens, np.abs(_read(array, (index[layer], index[layer] + 1), span)[0]))


def state_values(trace: Trace, of: Of, layer: int, head: int) -> Floats:
    """Return a quantity of one head with its sign, `[reading]`; raises as `state_sizes` does."""
    check(recurrent_heads(trace), layer, head)
    at = _layers(trace).index(layer)
    return np.asarray(_read(trace.stored(captured(trace)[of]), (at, at + 1), (head, head + 1))[0, 0])


def step_values(trace: Trace, name: str, layer: int, head: int) -> tuple[Floats, Floats]:
    """Return what each token's step has of one head (`decay`, `input_gate`), and the position each entry begins at."""
    check(recurrent_heads(trace), layer, head)
    array = trace.stored(name)
    at = _layers(trace).index(layer)
    values: Floats = _read(array, (at, at + 1), (head, head + 1))[0, 0]
    dim = array.dims[-1]
    if dim in trace.stored_names():
        starts = trace.stored(dim).read((0, len(values))).astype(np.float64)
    else:
        starts = np.arange(len(values), dtype=np.float64)
    return values, starts


def check(heads: dict[int, int], layer: int, head: int | None) -> None:
    """Raise UsageError, saying which there are, for a layer without a state or a head that it has not."""
    if layer not in heads:
        raise UsageError(f"layer {layer} has no recurrent state; layers that have one: {', '.join(map(str, heads))}")
    if head is not None and not 0 <= head < heads[layer]:
        raise UsageError(f"layer {layer} has no state head {head}; its heads are 0 to {heads[layer] - 1}")


def _layers(trace: Trace) -> list[int]:
    array = trace.stored("layer")
    return [int(layer) for layer in array.read((0, array.shape[0]))]


def _read(array: StoredArray, layers: tuple[int, int], heads: tuple[int, int] | None = None) -> Floats:
    """Return `[layer head entry]` of a range of layers, by their places in the array, and of heads or all."""
    if array.dims[:2] != ("layer", "state_head") or len(array.dims) != 3:
        raise MissingStatistic(f"{array.path} is not by layer, head and token")
    return np.asarray(array.read(layers, heads or (0, array.shape[1]), (0, array.shape[2])), np.float64)


def _largest(values: Floats) -> Floats:
    """Return the largest over heads, `[layer entry]`, NaN where none is a number."""
    there = np.where(np.isnan(values), -np.inf, values).max(1)
    return np.where(np.isneginf(there), np.nan, there)
