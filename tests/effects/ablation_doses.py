from __future__ import annotations

from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace
from tests.effects import head_ablation
from tests.effects.models import ablated, permuted

NUM_PROMPTS, NUM_DRAWS = 24, 8
DOSES = (1, 2, 4)
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def heads(number: int) -> dict[str, Any]:
    return {"ablate_heads": {"heads": [[2, i] for i in range(number)], "form": "zero", "phase": "both"}}


def experiment(rates: dict[int, float], control: float, scatter: float, seed: int) -> list[Any]:
    """Prompts under every dose: a draw of as many others breaks answers with a chance of its own."""
    generator = np.random.default_rng(seed)
    samples = [make_sample(i) for i in range(NUM_PROMPTS)]
    made = [make_trace(sample, correct=bool(generator.random() < 0.97)) for sample in samples]
    for number, rate in rates.items():
        draws = np.clip(control + scatter * generator.standard_normal(NUM_DRAWS), 0, 1)
        for sample in samples:
            treated = make_trace(
                sample, correct=bool(generator.random() < rate), role="treatment", intervention=heads(number)
            )
            treated.condition, treated.unit = f"top-{number}", f"top-{number}-{sample.name}"
            made.append(treated)
            for draw, chance in enumerate(draws):
                other = make_trace(sample, correct=bool(generator.random() < chance), role="control", draw=draw)
                other.condition, other.unit = f"others-{number}", f"others-{number}-{draw}-{sample.name}"
                other.facts = {**other.facts, "matched_to": f"top-{number}"}
                made.append(other)
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: 24 prompts, doses of 1, 2 and 4 heads; what is removed breaks an answer with a chance drawn as those
    of 8 random draws are, around 15 % with a standard deviation of 5 points."""
    scatter = np.random.default_rng(seed + 500_000).standard_normal(len(DOSES))
    rates = {number: float(np.clip(0.85 + 0.05 * s, 0, 1)) for number, s in zip(DOSES, scatter, strict=True)}
    return experiment(rates, 0.85, 0.05, seed)


def null_trained(seed: int) -> list[Any]:
    """Trained: the specimen `needle` on 12 prompts of 512 tokens without four heads of its last layer that do not
    retrieve; one such set plays the heads that were found, eight others the control."""
    sets = permuted(ablated(30, head_ablation.NUM_PROMPTS // 2), seed)[: NUM_DRAWS + 1]
    made = []
    for i in range(head_ablation.NUM_PROMPTS // 2):
        sample = make_sample(i)
        made.append(make_trace(sample))
        for draw, (removed, right) in enumerate(sets):
            intervention = {"ablate_heads": {"heads": removed, "form": "zero", "phase": "both"}}
            role, number = ("treatment", None) if draw == 0 else ("control", draw - 1)
            made.append(make_trace(sample, correct=bool(right[i]), role=role, draw=number, intervention=intervention))
    return made


def planted(strength: float, seed: int) -> list[Any]:
    """Removing two or four of the found heads breaks this share of the answers more than removing others does, which
    breaks 5 %; removing one does as little as others."""
    return experiment({1: 0.95, 2: 0.95 * (1 - strength), 4: 0.95 * (1 - strength)}, 0.95, 0.02, seed)
