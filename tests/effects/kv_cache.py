"""Prompts whose answer attends where the question did; and prompts of which the votes say nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from probe.sample import Sample, Span
from tests.analyses.conftest import make_trace

LENGTH, NUM_PROMPTS, NUM_ROWS, WINDOW = 256, 8, 3, 32
SHAPE = (2, 2)
STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def trace(index: int, window: np.ndarray, received: np.ndarray, norm: np.ndarray, rows: np.ndarray, place: int) -> Any:
    """One prompt with these `[layer head key]`, and the attention `[layer head query key]` of its last queries and of
    its rows."""
    order = np.argsort(-rows, axis=-1, kind="stable")
    tokens = tuple(range(LENGTH))
    sample = Sample(f"cache-{index}", tokens, spans=(Span("needle", place, place + 12),), answer_tokens=(1, 2, 3))
    heads = ("layer", "head", "row", "rank")
    arrays = {
        "window_mass": (("layer", "head", "key"), window.sum(2)),
        "window_mass_window_1": (("layer", "head", "key"), window[:, :, -1]),
        "received_mass": (("layer", "head", "key"), received + rows[:, :, 1:].sum(2)),
        "key_norm": (("layer", "kv_head", "key"), norm),
        "top_keys_k_256": (heads, order),
        "top_keys_k_256_probability": (heads, np.take_along_axis(rows, order, -1)),
    }
    return make_trace(sample, arrays=arrays)


def _traces(generator: np.random.Generator, strength: float, sharpness: float) -> list[Any]:
    traces = []
    for index in range(NUM_PROMPTS):
        place = int(generator.integers(8, LENGTH - WINDOW - 12))

        def attention(*shape: int, to: int = place) -> np.ndarray:
            weights = (1 - strength) * softmax(sharpness * generator.standard_normal((*SHAPE, *shape, LENGTH)))
            weights[..., to : to + 12] += strength / 12
            return weights

        traces.append(
            trace(
                index,
                attention(WINDOW),
                attention(WINDOW).sum(2),
                1 + generator.random((*SHAPE, LENGTH)),
                attention(NUM_ROWS),
                place,
            )
        )
    return traces


def null(seed: int) -> list[Any]:
    """Synthetic: attention over random logits, drawn anew for every query, as flat or as sharp as the seed draws it."""
    generator = np.random.default_rng(seed)
    return _traces(generator, 0.0, float(generator.uniform(0, 3)))


def planted(strength: float, seed: int) -> list[Any]:
    """The prompt's last queries and the answer's both attend to the needle. The strength is the share of their
    attention that goes there."""
    return _traces(np.random.default_rng(seed), strength, 0.5)
