from __future__ import annotations

from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace
from tests.effects.models import ablated, permuted

NUM_PROMPTS, NUM_DRAWS = 24, 20
HEADS = [[2, 2], [2, 5]]
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def experiment(treatment: float, control: float, scatter: float, seed: int) -> list[Any]:
    """Prompts under all three conditions: a draw of other heads breaks answers with a chance of its own."""
    generator = np.random.default_rng(seed)
    draws = np.clip(control + scatter * generator.standard_normal(NUM_DRAWS), 0, 1)
    removed = {"ablate_heads": {"heads": HEADS, "form": "zero", "phase": "both"}}
    made = []
    for i in range(NUM_PROMPTS):
        sample = make_sample(i)
        made.append(make_trace(sample, correct=bool(generator.random() < 0.97)))
        right = bool(generator.random() < treatment)
        made.append(make_trace(sample, correct=right, role="treatment", intervention=removed))
        for draw, rate in enumerate(draws):
            made.append(make_trace(sample, correct=bool(generator.random() < rate), role="control", draw=draw))
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: 24 prompts; the heads removed break an answer with a chance drawn as those of the 20 random draws are,
    around 15 % with a standard deviation of 5 points."""
    rate = float(np.clip(0.85 + 0.05 * np.random.default_rng(seed + 500_000).standard_normal(), 0, 1))
    return experiment(rate, 0.85, 0.05, seed)


def planted(strength: float, seed: int) -> list[Any]:
    """Removing the found heads breaks this share of the answers more than removing others does, which breaks 5 %."""
    return experiment(0.95 * (1 - strength), 0.95, 0.02, seed)


def null_trained(seed: int) -> list[Any]:
    """Trained: the specimen `needle` on 12 prompts of 512 tokens without four heads of its last layer that do not
    retrieve, 30 such sets; one of them plays the heads that were found, and 20 others the control."""
    sets = permuted(ablated(30, 12), seed)[: NUM_DRAWS + 1]
    made = []
    for i in range(12):
        sample = make_sample(i)
        made.append(make_trace(sample))
        for draw, (heads, right) in enumerate(sets):
            removed = {"ablate_heads": {"heads": heads, "form": "zero", "phase": "both"}}
            role, number = ("treatment", None) if draw == 0 else ("control", draw - 1)
            made.append(make_trace(sample, correct=bool(right[i]), role=role, draw=number, intervention=removed))
    return made
