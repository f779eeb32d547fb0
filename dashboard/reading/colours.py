"""What the tokens of the Text page are coloured by, for a view of it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.colour_steps import ColourSteps, colour_steps
from probe.analyses.measures.context_gain import shorter_prompt
from probe.analyses.measures.token_values import TokenValues, token_values
from probe.dashboard.application.address import HEAD, LAYER, View, number
from probe.dashboard.application.opened import OpenedRun
from probe.errors import MissingStatistic
from probe.storage.trace_store import Run, Trace

COLOURS: Final = {
    "received": "attention received",
    "per-query": "attention received, per query that sees it",
    "query": "what the chosen token attends to",
    "loss": "loss",
    "gain": "context gain",
    "none": "nothing",
}
"""What can be chosen, and what it is called."""

_MOST_READ: Final = 16


@dataclass(frozen=True)
class Colouring:
    """Values and their scale, and what to write in a notebook to have the same."""

    values: TokenValues
    by_slot: NDArray[np.float64]
    """The values of all tokens, the right answer's after those at a position."""
    steps: ColourSteps
    lines: str
    """Python up to the arguments: `trace` and, for a gain, `shorter` are set."""
    arguments: str
    """What `token_values` and `token_profile` take after the trace."""


def preferred(trace: Trace) -> str:
    """Return what a unit is coloured by where nobody says: the first of what was captured."""
    names = set(trace)
    if trace.heads and any(name == "received_mass" or name.startswith("received_mass_horizon") for name in names):
        return "received"
    kept = trace.kept_layers or any(name.startswith(("top_keys", "span_mass", "attention_map")) for name in names)
    if trace.heads and kept:
        return "query"
    told = trace.outcome is not None and trace.outcome.answer_log_probability
    return "loss" if "loss" in names or told else "none"


class Colourings:
    """Reads the values of a view, each once: a screen of tokens after the other asks for the same."""

    def __init__(self) -> None:
        self._read: OrderedDict[tuple[Any, ...], Colouring] = OrderedDict()
        self._lock = Lock()

    def of(self, run: OpenedRun, trace: Trace, view: View) -> Colouring | None:
        """Return what a completed view is coloured by, None where by nothing; raises as `token_values` does."""
        if view["colour"] == "none":
            return None
        parts = ("colour", LAYER.name, HEAD.name, "heads", "scale")
        key = (run.name, run.version, trace.unit, *(view[part] for part in parts))
        # The chosen token decides nothing of the other colours.
        key += (view["query"],) if view["colour"] == "query" else ()
        with self._lock:
            if key in self._read:
                self._read.move_to_end(key)
                return self._read[key]
        read = _read(run, trace, view)
        with self._lock:
            self._read[key] = read
            while len(self._read) > _MOST_READ:
                self._read.popitem(last=False)
        return read


def _read(run: OpenedRun, trace: Trace, view: View) -> Colouring:
    layer, head = number(view, LAYER.name), number(view, HEAD.name)
    colour = view["colour"]
    scale = cast(Literal["log", "linear"], view["scale"])
    lines = ["import probe", "", *_opened(run, trace)]
    if colour in ("loss", "gain"):
        by: dict[str, Any] = {"by": "loss" if colour == "loss" else "context_gain"}
    elif layer is None:
        raise MissingStatistic(
            "this unit holds nothing of attention heads: it has no attention layers, or none of their statistics was "
            "captured (a casebook's capture, or probe.trace(…, statistics=['received_mass', …]))"
        )
    elif colour == "query":
        by = {"by": "query", "layer": layer, "head": head, "query": number(view, "query")}
    else:
        by = {"by": "received_mass", "layer": layer, "head": None if view["heads"] == "layer" else head}
        by |= {"per_query": True} if colour == "per-query" else {}
    said = ", ".join(f"{name}={value!r}" for name, value in by.items())
    shorter = None
    if colour == "gain":
        if not isinstance(run.source, Run):
            raise MissingStatistic("context gain compares two traces of one run, and this is a trace of its own")
        shorter = shorter_prompt(run.source, trace)
        lines.insert(1, "from probe.analyses.measures.context_gain import shorter_prompt")
        lines.append("shorter = shorter_prompt(run, trace)")
        said += ", shorter=shorter"
    values = token_values(trace, shorter=shorter, **by)
    every = np.concatenate([values.values, values.answer])
    return Colouring(values, every, colour_steps(every, scale), "\n".join(lines), said)


def _opened(run: OpenedRun, trace: Trace) -> list[str]:
    opened = f"probe.open({str(run.path)!r})"
    if not isinstance(run.source, Run):
        return [f"trace = {opened}"]
    return [f"run = {opened}", f"trace = run.trace({trace.unit!r})"]
