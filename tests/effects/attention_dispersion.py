from __future__ import annotations

from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace

LENGTHS, NUM_PROMPTS = (64, 128, 256), 8
SHAPE = (3, 4)
TRUTH = {(0, 2), (2, 1)}
STRENGTHS = (0.0, 0.02, 0.03, 0.05, 0.1, 0.2)
PEAK = 0.8
"""Largest probability of a planted head at the shortest length."""


def traces(peak: Any, generator: np.random.Generator) -> list[Any]:
    """Prompts of three lengths; of every head and length `peak(head, length)` is the mean largest probability, the rest
    of its attention even over the other keys."""
    made = []
    for length in LENGTHS:
        seen = np.arange(1, length + 1)
        for i in range(NUM_PROMPTS):
            largest = np.empty((*SHAPE, length))
            for head in np.ndindex(SHAPE):
                wanted = peak(head, length) + generator.normal(0, 0.02) + generator.normal(0, 0.05, length)
                largest[head] = np.clip(wanted, 1 / seen, 1)
            # Entropy of one peak above an even rest, in closed form.
            rest = np.clip(1 - largest, 1e-12, None)
            entropy = -largest * np.log(largest) - rest * (np.log(rest) - np.log(np.maximum(seen - 1, 1)))
            entropy[..., 0] = 0.0
            arrays = {
                "entropy": (("layer", "head", "query"), np.maximum(entropy, 0)),
                "max_probability": (("layer", "head", "query"), largest),
            }
            sample = make_sample(i, length=length, half=("find", "test")[i % 2])
            made.append(make_trace(sample, arrays=arrays))
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: 12 heads whose largest probability, from 0.05 to 0.95, is the same at every length."""
    generator = np.random.default_rng(seed)
    peaks = generator.uniform(0.05, 0.95, SHAPE)
    return traces(lambda head, _: peaks[head], generator)


def null_uniform(seed: int) -> list[Any]:
    """Synthetic: uniform attention in every head, more or less: nothing is left to flatten."""
    return traces(lambda _, length: 1 / length, np.random.default_rng(seed))


def null_shuffled(seed: int) -> list[Any]:
    """Synthetic: heads whose largest probability differs by up to 0.2 from prompt to prompt, whatever the length."""
    generator = np.random.default_rng(seed)
    peaks = generator.uniform(0.2, 0.8, SHAPE)
    return traces(lambda head, _: peaks[head] + generator.uniform(-0.1, 0.1), generator)


def planted(strength: float, seed: int) -> list[Any]:
    """The largest probability of two of 12 heads, 0.8 at the shortest length, falls by this much for each doubling."""
    generator = np.random.default_rng(seed)

    def peak(head: tuple[int, int], length: int) -> float:
        return PEAK - strength * np.log2(length / LENGTHS[0]) if head in TRUTH else 0.5

    return traces(peak, generator)


def found(finding: Any) -> frozenset[tuple[int, int]]:
    """The heads that the finding says to disperse."""
    return frozenset((int(row["layer"]), int(row["head"])) for row in finding.records() if row["disperses"])
