from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace
from tests.effects.models import needle_traces, permuted, with_facts

DEPTHS, NUM_PROMPTS = (0.0, 0.25, 0.5, 0.75, 1.0), 12
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def grid(profiles: Mapping[int, Sequence[float]], seed: int) -> list[Any]:
    """Prompts at each length and depth, right with the chance of their profile."""
    generator = np.random.default_rng(seed)
    return [
        make_trace(make_sample(i, length=length, depth=depth), correct=bool(generator.random() < rate))
        for length, profile in profiles.items()
        for depth, rate in zip(DEPTHS, profile, strict=True)
        for i in range(NUM_PROMPTS)
    ]


def null(seed: int) -> list[Any]:
    """Synthetic: 12 prompts at each of five depths and three lengths, right with a chance that falls with length and is
    the same at every depth."""
    return grid({256: (0.95,) * 5, 512: (0.5,) * 5, 1024: (0.2,) * 5}, seed)


def planted(strength: float, seed: int) -> list[Any]:
    """At 512 and 1,024 tokens the middle depth loses this share of the answers that the ends keep (95 %), and the
    depths beside it half of that share."""
    profile = tuple(0.95 * (1 - strength * weight) for weight in (0, 0.5, 1, 0.5, 0))
    return grid({256: (0.95,) * 5, 512: profile, 1024: profile}, seed)


def null_trained(seed: int) -> list[Any]:
    """Permuted: the specimen `needle` at 384 and 512 tokens, where it loses what stands early, on 8 prompts a depth;
    the depths are then shuffled among the prompts of each length."""
    made = []
    for length in (384, 512):
        read = [trace for trace in needle_traces((384, 512), 8, False) if trace.sample.facts["length"] == length]
        depths = permuted([trace.sample.facts["needle_depth"] for trace in read], seed + length)
        made += [
            with_facts(trace, f"needle-{length}-{depth}-s{i}", needle_depth=depth)
            for i, (trace, depth) in enumerate(zip(read, depths, strict=True))
        ]
    return made
