from __future__ import annotations

from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace

NUM_PROMPTS, NUM_LAYERS, NUM_TOKENS, WIDTH = 8, 4, 64, 256
STRENGTHS = (0.0, 20.0, 50.0, 100.0, 300.0, 1000.0)


def traces(states: list[np.ndarray]) -> list[Any]:
    """One prompt for each residual stream `[layer token channel]`, with what the analysis needs of it."""
    made = []
    for i, state in enumerate(np.abs(each) for each in states):
        arrays = {
            "residual_max": (("layer", "token"), state.max(-1)),
            "residual_max_channel": (("layer", "token"), state.argmax(-1)),
            "residual_median": (("layer", "token"), np.median(state, -1)),
        }
        made.append(make_trace(make_sample(i, length=NUM_TOKENS), arrays=arrays))
    return made


def stream(generator: np.random.Generator) -> np.ndarray:
    return 0.2 * generator.standard_normal((NUM_LAYERS, NUM_TOKENS, WIDTH))


def null(seed: int) -> list[Any]:
    """Synthetic: 8 residual streams of Gaussian channels."""
    generator = np.random.default_rng(seed)
    return traces([stream(generator) for _ in range(NUM_PROMPTS)])


def null_heavy_tails(seed: int) -> list[Any]:
    """Synthetic: residual streams whose channels have the heavy tails of Student's t with 3 degrees of freedom."""
    generator = np.random.default_rng(seed)
    shape = (NUM_LAYERS, NUM_TOKENS, WIDTH)
    return traces([0.2 * generator.standard_t(3, shape) for _ in range(NUM_PROMPTS)])


def null_large_everywhere(seed: int) -> list[Any]:
    """Synthetic: residual streams that are all a thousand times as large, so that none towers over its own median."""
    generator = np.random.default_rng(seed)
    return traces([1000 * stream(generator) for _ in range(NUM_PROMPTS)])


def planted(strength: float, seed: int) -> list[Any]:
    """The first token has one channel of this size from layer 1 on, where the median of its channels is 0.13."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(NUM_PROMPTS):
        state = stream(generator)
        state[1:, 0, 7] += strength
        made.append(state)
    return traces(made)
