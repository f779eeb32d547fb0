"""Heads without which far answers are lost; heads without which any answers are; and heads that do nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace

NUM_PROMPTS, NUM_DRAWS = 40, 10
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
HEADS = [[2, 2], [2, 5]]
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)


def experiment(near: float, far: float, seed: int) -> list[Any]:
    """Prompts with the heads removed, right with these chances where the answer stands near or far, and with others
    removed, right with a chance of 0.95 everywhere."""
    generator = np.random.default_rng(seed)
    removed = {"ablate_heads": {"heads": HEADS, "form": "zero", "phase": "both"}}
    made = []
    for i in range(NUM_PROMPTS):
        depth = DEPTHS[i % 5]
        sample = make_sample(i, depth=depth)
        right = bool(generator.random() < (far if depth < 0.5 else near))
        made.append(make_trace(sample, correct=right, role="treatment", intervention=removed))
        for draw in range(NUM_DRAWS):
            made.append(make_trace(sample, correct=bool(generator.random() < 0.95), role="control", draw=draw))
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: 40 prompts at five depths; removing the heads does what removing others does."""
    return experiment(0.95, 0.95, seed)


def null_everywhere(seed: int) -> list[Any]:
    """Synthetic: removing the heads breaks answers, as often near as far; how often the seed draws."""
    rate = float(np.random.default_rng(seed + 500_000).uniform(0.1, 0.9))
    return experiment(rate, rate, seed)


def planted(strength: float, seed: int) -> list[Any]:
    """Removing the heads breaks this share of the answers in the first two of five depths more than removing others
    does, and none of the others."""
    return experiment(0.95, 0.95 * (1 - strength), seed)
