from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.effects.document_attention import NUM_DOCUMENTS, PLACES, document_sample, document_trace

NUM_PROMPTS = 60
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
PARAMETERS = {"most": 1}
U = (2 * PLACES - 1) ** 2


def read(bias: NDArray[np.float64], of_dummies: NDArray[np.float64], seed: int) -> list[Any]:
    """Prompts with a gold that is worth a half more than the others, plus bias; dummies of their own."""
    generator = np.random.default_rng(seed)
    traces = []
    for index in range(NUM_PROMPTS):
        gold = (0, 2, 5, 7, 9)[index % 5]
        relevance = 1 + 0.15 * generator.random(NUM_DOCUMENTS)
        relevance[gold] += 0.5
        attention = 0.002 * (relevance + bias) * generator.lognormal(0.0, 0.05, NUM_DOCUMENTS)
        traces.append(document_trace(document_sample(index, gold), attention, role="baseline"))
        dummies = 0.002 * (0.9 + of_dummies) * generator.lognormal(0.0, 0.05, NUM_DOCUMENTS)
        traces.append(document_trace(document_sample(index, gold, given="all_dummies"), dummies, role="other"))
    return traces


def null(seed: int) -> list[Any]:
    """Synthetic: 60 prompts of ten documents without any bias, so that calibration takes off noise alone."""
    return read(np.zeros(NUM_DOCUMENTS), np.zeros(NUM_DOCUMENTS), seed)


def null_unlike(seed: int) -> list[Any]:
    """Synthetic: the same with a U of attention, and dummies that have one at places drawn at random."""
    shuffled = np.random.default_rng([seed, 1]).permutation(2 * U)
    return read(2 * U, shuffled, seed)


def planted(strength: float, seed: int) -> list[Any]:
    """Documents and dummies get this much more at both ends than in the middle, in units of a document's relevance."""
    return read(strength * U, strength * U, seed)
