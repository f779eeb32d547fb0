from __future__ import annotations

from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace
from tests.effects.models import untrained_attention

HORIZON, NUM_PROMPTS, EPSILON = 64, 12, 0.3
SHAPE = (2, 4)
TRUTH = {(0, 1), (1, 2)}
STRENGTHS = (0.0, 0.2, 0.25, 0.3, 0.35, 0.5, 0.8)


def attention(generator: np.random.Generator, sharpness: float) -> np.ndarray:
    """Causal attention of random logits, `[layer head query key]`."""
    logits = sharpness * generator.standard_normal((*SHAPE, HORIZON, HORIZON))
    logits[..., ~np.tril(np.ones((HORIZON, HORIZON), bool))] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def traces(attentions: list[np.ndarray]) -> list[Any]:
    """One prompt for each attention, with what the analysis needs of it."""
    return [
        make_trace(make_sample(i), arrays={"received_mass_horizon_64": (("layer", "head", "key"), each.sum(axis=2))})
        for i, each in enumerate(attentions)
    ]


def null(seed: int) -> list[Any]:
    """Synthetic: 12 prompts of causal attention over random logits, drawn anew for every prompt, as flat or as sharp as
    the seed draws it."""
    generator = np.random.default_rng(seed)
    sharpness = float(generator.uniform(0, 4))
    return traces([attention(generator, sharpness) for _ in range(NUM_PROMPTS)])


def null_favourite(seed: int) -> list[Any]:
    """Synthetic: as the first, and two heads give half of their attention to one token that is not the first."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(NUM_PROMPTS):
        each = attention(generator, 1.0)
        place = int(generator.integers(4, 32))
        for head in TRUTH:
            each[head][place:] *= 0.5
            each[head][place:, place] += 0.5
        made.append(each)
    return traces(made)


def planted(strength: float, seed: int) -> list[Any]:
    """Two of 8 heads give the first token this share of their attention, more or less by 0.05 from prompt to prompt,
    and the rest to random tokens."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(NUM_PROMPTS):
        each = attention(generator, 1.0)
        for head in TRUTH:
            share = float(np.clip(strength + generator.uniform(-0.05, 0.05), 0, 1)) if strength else 0.0
            each[head] *= 1 - share
            each[head][:, 0] += share
        made.append(each)
    return traces(made)


def found(finding: Any) -> frozenset[tuple[int, int]]:
    """The heads whose mean importance of the first token is above the published threshold."""
    return frozenset(
        (int(row["layer"]), int(row["head"])) for row in finding.records() if row["importance_of_first_token"] > EPSILON
    )


def null_untrained(seed: int) -> list[Any]:
    """Random weights: 12 prompts of random tokens through a Llama of 2 layers and 8 heads, its weights drawn anew, and
    how wide they are, for every null."""
    return traces([*untrained_attention(seed, num_prompts=NUM_PROMPTS, length=HORIZON)])
