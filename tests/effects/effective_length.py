from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace

LENGTHS, NUM_PROMPTS = (64, 128, 256, 512), 20
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
ABLE = 0.95
"""Chance of a right answer where nothing is lost."""


def diagnosis(rates: Mapping[int, float], seed: int) -> list[Any]:
    """Prompts at each length, right with its chance; the needle's sentence alone is answered, its absence is not."""
    generator = np.random.default_rng(seed)
    made = []
    for length, rate in rates.items():
        for i in range(NUM_PROMPTS):
            sample = make_sample(i, length=length)
            for role, chance in (("baseline", rate), ("gold_only", ABLE), ("needle_absent", 0.0)):
                made.append(make_trace(sample, correct=bool(generator.random() < chance), role=role))
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: answers at four lengths, 20 prompts each, right with a chance of 95 % at every length."""
    return diagnosis(dict.fromkeys(LENGTHS, ABLE), seed)


def planted(strength: float, seed: int) -> list[Any]:
    """From 256 tokens on this share of the answers that would be right is lost; up to 128 tokens 95 % are right."""
    return diagnosis({length: ABLE * (1 - strength) if length >= 256 else ABLE for length in LENGTHS}, seed)
