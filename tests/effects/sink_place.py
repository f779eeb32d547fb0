from __future__ import annotations

from typing import Any

import numpy as np

from probe.sample import Span
from tests.analyses.conftest import make_sample, make_trace
from tests.effects.attention_sinks import HORIZON, attention

NUM_PROMPTS, MOVED_TO, SHARE = 20, 16, 0.6
HEADS = ((0, 1), (1, 2))
STRENGTHS = (0.0, 0.25, 0.5, 0.6, 0.75, 1.0)
"""At 0.25 and below the sink goes with the token, at 0.5 it does neither."""


def sunk(generator: np.random.Generator, places: dict[int, float]) -> np.ndarray:
    """Causal attention in which these heads give shares of their attention to these places, once they see them."""
    each = attention(generator, 1.0)
    for head in HEADS:
        for place, share in places.items():
            given = np.clip(share + generator.normal(0, 0.02), 0, 0.95) if share else 0.0
            each[head][place:] *= 1 - given
            each[head][place:, place] += given
    return each


def traces(how: str, attentions: list[np.ndarray], generator: np.random.Generator) -> list[Any]:
    """One prompt for each attention, its first token kept, moved or dropped."""
    made = []
    for i, each in enumerate(attentions):
        sample = make_sample(i, length=HORIZON, first_token=how)
        at = {"kept": 0, "moved": MOVED_TO}.get(how)
        if at is not None:
            object.__setattr__(sample, "spans", (*sample.spans, Span("first_token", at, at + 1)))
        arrays = {"received_mass_horizon_64": (("layer", "head", "key"), each.sum(axis=2))}
        role = "baseline" if how == "kept" else "other"
        loss = 1.0 + 0.1 * generator.random()
        trace = make_trace(sample, arrays=arrays, role=role, loss=loss)
        trace.condition, trace.unit = how, f"{how}-{sample.name}"
        made.append(trace)
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: attention over random logits in which no token is a sink, however the text begins."""
    generator = np.random.default_rng(seed)
    return [
        trace
        for how in ("kept", "moved", "dropped")
        for trace in traces(how, [sunk(generator, {}) for _ in range(NUM_PROMPTS)], generator)
    ]


def null_goes_along(seed: int) -> list[Any]:
    """Synthetic: a sink that belongs to the token: where it is moved the sink is, and where it is left out none is."""
    return planted(0.0, seed)


def planted(strength: float, seed: int) -> list[Any]:
    """This share of a sink stays at the first place when the first token is moved, the rest goes along."""
    generator = np.random.default_rng(seed)
    moved = {0: SHARE * strength, MOVED_TO: SHARE * (1 - strength)}
    places = {"kept": {0: SHARE}, "moved": moved, "dropped": {0: SHARE * strength}}
    return [
        trace
        for how, where in places.items()
        for trace in traces(how, [sunk(generator, where) for _ in range(NUM_PROMPTS)], generator)
    ]
