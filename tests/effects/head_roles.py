"""Heads that look at one token before, at duplicates' followers, at the first and last tokens; and none of that."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from probe.finding import Finding
from probe.sample import Sample
from tests.analyses.conftest import make_trace

LENGTH, NUM_PROMPTS, RECENT = 144, 8, 32
SHAPE = (2, 4)
TRUTH = {(0, 1), (1, 0), (1, 2), (1, 3)}
STRENGTHS = (0.0, 0.2, 0.3, 0.35, 0.4, 0.6, 0.97)


def found(finding: Finding) -> frozenset[tuple[int, int]]:
    """The heads of any role."""
    rows = finding.records()
    return frozenset((int(str(row["layer"])), int(str(row["head"]))) for row in rows if row["roles"])


def statistics(weights: np.ndarray, tokens: np.ndarray) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """What the analysis needs, densely from attention `[layer head query key]` by the statistics' definitions."""
    num = len(tokens)
    i, j = np.indices((num, num))
    distance, same = i - j, tokens[:, None] == tokens[None, :]
    before = np.concatenate([[-1], tokens[:-1]])
    edges = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]
    bins = [(weights * ((distance >= a) & (distance < b))).sum((2, 3)) for a, b in pairwise(edges)]
    query = ("layer", "head", "query")
    return {
        "sink_mass": (query, weights[..., :4].sum(-1)),
        f"recent_mass_recent_{RECENT}": (query, (weights * ((distance >= 0) & (distance < RECENT))).sum(-1)),
        "offset_mass": (
            ("layer", "head", "offset"),
            np.stack([(weights * (distance == d)).sum((2, 3)) for d in range(4)], -1),
        ),
        "match_mass": (query, (weights * (same & (distance > 0))).sum(-1)),
        "match_mass_by_induction": (query, (weights * ((tokens[:, None] == before) & (distance >= 0))).sum(-1)),
        "distance_histogram": (("layer", "head", "distance_bin"), np.stack(bins, -1)),
        "received_mass": (("layer", "head", "key"), weights.sum(2)),
        "received_mass_num_queries": (("layer", "key"), np.tile(num - np.arange(num), (weights.shape[0], 1))),
    }


def attention(generator: np.random.Generator, sharpness: float) -> np.ndarray:
    """Causal attention of random logits, `[layer head query key]`."""
    logits = sharpness * generator.standard_normal((*SHAPE, LENGTH, LENGTH))
    logits[..., ~np.tril(np.ones((LENGTH, LENGTH), bool))] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def trace(index: int, weights: np.ndarray, tokens: np.ndarray) -> Any:
    """One prompt with this attention."""
    sample = Sample(f"roles-{index}", tuple(tokens.tolist()), answer_tokens=(1,))
    return make_trace(sample, arrays=statistics(weights, tokens))


def null(seed: int) -> list[Any]:
    """Synthetic: causal attention over random logits, drawn anew for every prompt, on text of few distinct tokens."""
    generator = np.random.default_rng(seed)
    sharpness = float(generator.uniform(0, 4))
    return [trace(i, attention(generator, sharpness), generator.integers(0, 12, LENGTH)) for i in range(NUM_PROMPTS)]


def null_permuted(seed: int) -> list[Any]:
    """Synthetic: the planted heads' attention, over each prompt's keys in random order."""
    generator = np.random.default_rng(seed)
    traces = []
    for i in range(NUM_PROMPTS):
        weights, tokens = _planted(generator, 0.9)
        for query in range(LENGTH):
            weights[..., query, : query + 1] = weights[..., query, generator.permutation(query + 1)]
        traces.append(trace(i, weights, tokens))
    return traces


def planted(strength: float, seed: int) -> list[Any]:
    """One head each of streaming, previous token, duplicates and induction. The strength is the share of its attention
    that goes there, the rest being random."""
    generator = np.random.default_rng(seed)
    return [trace(i, *_planted(generator, strength)) for i in range(NUM_PROMPTS)]


def _planted(generator: np.random.Generator, strength: float) -> tuple[np.ndarray, np.ndarray]:
    # Every token stands again before long, at a distance that differs between prompts and places.
    tokens = generator.integers(0, 12, LENGTH)
    weights = attention(generator, 0.5)
    i, j = np.indices((LENGTH, LENGTH))
    before = np.concatenate([[-1], tokens[:-1]])
    places = {
        (0, 1): (j == i - 1),
        (1, 0): (tokens[:, None] == tokens) & (j < i),
        (1, 2): (tokens[:, None] == before) & (j <= i),
        (1, 3): ((j < 2) | (i - j < 2)) & (j <= i),
    }
    for head, place in places.items():
        number = place.sum(-1, keepdims=True)
        there = np.divide(place, number, out=np.zeros(place.shape), where=number > 0)
        weights[head] = np.where(number > 0, strength * there + (1 - strength) * weights[head], weights[head])
    return weights, tokens
