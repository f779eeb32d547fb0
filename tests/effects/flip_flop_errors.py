from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace
from tests.effects.models import flip_flop_traces, permuted, with_facts

NUM_TEXTS = 60
STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)


def texts(errors: Mapping[float, float], seed: int) -> list[Any]:
    """Texts of each language FFL(p), whose last read is wrong with its chance."""
    generator = np.random.default_rng(seed)
    made = []
    for p, rate in errors.items():
        for i in range(NUM_TEXTS):
            sample = make_sample(i, length=256, p=p, age_pairs=int(generator.integers(1, 100)))
            sample = dataclasses.replace(sample, name=f"flip_flop-256-{p}-s{i}")
            made.append(make_trace(sample, correct=bool(generator.random() >= rate)))
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: 60 last reads of each of FFL(0.8), FFL(0.98) and FFL(0.1), each wrong with a chance of 5 %."""
    return texts(dict.fromkeys((0.8, 0.98, 0.1), 0.05), seed)


def null_guessing(seed: int) -> list[Any]:
    """Synthetic: a model that guesses every read of every language, so that there is no memory to glitch."""
    return texts(dict.fromkeys((0.8, 0.98, 0.1), 0.5), seed)


def planted(strength: float, seed: int) -> list[Any]:
    """This share of the 60 last reads of FFL(0.98) is wrong, 1 % of those of FFL(0.8) and FFL(0.1)."""
    return texts({0.8: 0.01, 0.98: max(strength, 0.01), 0.1: 0.01}, seed)


def null_trained(seed: int) -> list[Any]:
    """Permuted: the specimen `flip-flop` on 40 texts of each of three languages, whose languages are then shuffled
    among the texts, so that its errors come with none of them."""
    read = flip_flop_traces((0.8, 0.98, 0.1), 40)
    languages = permuted([trace.sample.facts["p"] for trace in read], seed)
    return [with_facts(t, f"flip_flop-256-{p}-s{i}", p=p) for i, (t, p) in enumerate(zip(read, languages, strict=True))]
