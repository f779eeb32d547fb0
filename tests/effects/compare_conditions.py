from __future__ import annotations

from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace

NUM_PROMPTS = 60
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.95)
SCALES = (1.5, 2.0, 3.0, 4.0)


def experiment(rescued: dict[float, float], seed: int, *, broken: float = 0.05, base: float = 0.4) -> list[Any]:
    """Prompts with nothing done and under conditions that turn shares of the wrong answers right; others break one
    in twenty of the right ones and rescue as many answers as they break."""
    generator = np.random.default_rng(seed)
    made = []
    for i in range(NUM_PROMPTS):
        sample = make_sample(i, half="find")
        right = bool(generator.random() < base)
        level = float(generator.gamma(2.0, 0.5))
        made.append(make_trace(sample, correct=right, loss=level))
        for factor in SCALES:
            rescue = rescued.get(factor, broken * base / (1 - base))
            after = bool(generator.random() < ((1 - broken) if right else rescue))
            loss = max(0.0, level + 0.3 * float(generator.standard_normal()) - 0.5 * rescued.get(factor, 0.0))
            trace = make_trace(
                sample, correct=after, loss=loss, role="treatment", intervention={"scale": {"factor": factor}}
            )
            trace.condition, trace.unit = f"scale-{factor:g}", f"scale-{factor:g}-{sample.name}"
            made.append(trace)
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: 60 prompts under four conditions, each of which breaks as many answers as it rescues."""
    return experiment({}, seed)


def null_all_alike(seed: int) -> list[Any]:
    """Synthetic: 60 prompts under four conditions that change nothing at all."""
    return experiment(dict.fromkeys(SCALES, 0.0), seed, broken=0.0)


def planted(strength: float, seed: int) -> list[Any]:
    """One of four conditions turns this share of the wrong answers right, at least as many as the others do, and breaks
    one in twenty; 60 prompts, of which six in ten are answered wrong without it."""
    return experiment({3.0: max(strength, 0.05 * 0.4 / 0.6)}, seed)
