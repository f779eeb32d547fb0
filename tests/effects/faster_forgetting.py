from __future__ import annotations

from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace

TRAINED, LENGTHS, NUM_PROMPTS = 64, (64, 128, 256), 20
KEPT = 0.3
"""Chance of a right recent answer in a long text without the intervention."""
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)


def answers(gain: float, seed: int, kept: float = KEPT) -> list[Any]:
    """Recent questions at three lengths, with and without the intervention; `gain` is added to the chance beyond."""
    generator = np.random.default_rng(seed)
    made = []
    for length in LENGTHS:
        for i in range(NUM_PROMPTS):
            sample = make_sample(i, length=length, depth=0.9)
            for role, more in (("baseline", 0.0), ("treatment", gain)):
                chance = 0.95 if length <= TRAINED else min(kept + more, 1.0)
                played = (
                    {"forget_faster": {"heads": [[0, 0]], "factors": [30.0]}} if more or role != "baseline" else None
                )
                trace = make_trace(sample, correct=bool(generator.random() < chance), role=role, intervention=played)
                trace.provenance = {"positions": {"layers": {}, "training_length": {"tokens": TRAINED}}}
                made.append(trace)
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: recent answers are right with a chance that the seed draws, with the intervention and without."""
    return answers(0.0, seed, kept=float(np.random.default_rng(seed).uniform(0, 1)))


def planted(strength: float, seed: int) -> list[Any]:
    """30 % of the 40 recent answers in long texts are right without the intervention; it adds this share."""
    return answers(strength, seed)
