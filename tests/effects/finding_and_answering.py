from __future__ import annotations

from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace

LENGTHS, NUM_PROMPTS = (64, 128, 256), 20
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8)
ABLE = 0.9
"""Chance of a right answer from the gold alone."""
SHAPE = (3, 4, 4)
TRUTH = {(1, 3), (2, 1)}
"""Heads that look at the gold in right answers and not in those that are lost."""


def three_texts(lost: float, generator: np.random.Generator, alone: float = ABLE, absent: float = 0.0) -> list[Any]:
    """The same questions over the whole text, the gold alone and without it; `lost` of those that could be answered."""
    made = []
    for length in LENGTHS:
        for i in range(NUM_PROMPTS):
            sample = make_sample(i, length=length, half=("find", "test")[i % 2])
            found = bool(generator.random() >= lost)
            right = bool(generator.random() < alone) and found
            mass = generator.uniform(0, 0.05, (*SHAPE, 1))
            for head in TRUTH:
                mass[head] += 0.6 if found else 0.0
            whole = make_trace(sample, correct=right, arrays={"span_mass": (("layer", "head", "row", "span"), mass)})
            whole.dataset = whole.dataset.assign_coords(span=["needle_value"])
            made += [
                whole,
                make_trace(sample, correct=bool(generator.random() < alone), role="gold_only"),
                make_trace(sample, correct=bool(generator.random() < absent), role="needle_absent"),
            ]
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: 60 questions, right with a chance that the seed draws from 0.3 to 1, the same over the whole text as
    over the gold alone."""
    generator = np.random.default_rng(seed)
    return three_texts(0.0, generator, alone=float(generator.uniform(0.3, 1)))


def null_guessing(seed: int) -> list[Any]:
    """Synthetic: right by chance alone, 30 % of the time from the gold, from the whole text and without the gold."""
    return three_texts(0.0, np.random.default_rng(seed), alone=0.3, absent=0.3)


def null_unable(seed: int) -> list[Any]:
    """Synthetic: a model that cannot answer, right 2 % of the time from any text."""
    return three_texts(0.0, np.random.default_rng(seed), alone=0.02, absent=0.02)


def planted(strength: float, seed: int) -> list[Any]:
    """This share of the questions that could be answered from the gold alone is lost in the whole text, where two of 12
    heads do not look at the gold."""
    return three_texts(strength, np.random.default_rng(seed))
