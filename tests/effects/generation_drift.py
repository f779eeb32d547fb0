from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from probe.sample import Span
from tests.analyses.conftest import make_sample, make_trace

NUM_ITEMS, NUM_PROMPTS, TOKENS_EACH = 12, 20, 8
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8)
EARLY = 0.9


def answers(rate: Callable[[float], float], generator: np.random.Generator, absent: float = 0.0) -> list[Any]:
    """Long answers of 12 items with a constraint each, kept with the chance `rate(0 … 1)` along the answer, and the
    same with the text left out."""
    made = []
    for i in range(NUM_PROMPTS):
        base = make_sample(i, length=128)
        sample = dataclasses.replace(
            base,
            name=f"long_answer-128-s{i}",
            spans=(Span("prompt", 0, len(base)), *base.spans),
            answer_tokens=tuple(range(2000, 2000 + NUM_ITEMS * TOKENS_EACH)),
            facts={
                **base.facts,
                "constraints": [[item, "value", f"<item {item}>"] for item in range(1, NUM_ITEMS + 1)],
                "item_stops": [TOKENS_EACH * item for item in range(1, NUM_ITEMS + 1)],
                "end_token": 7,
            },
        )
        for role, chance in (("baseline", rate), ("needle_absent", lambda _: absent)):
            kept = [k for k in range(NUM_ITEMS) if generator.random() < chance(k / (NUM_ITEMS - 1))]
            mass = generator.uniform(0.4, 0.6, (3, 4, NUM_ITEMS * TOKENS_EACH, 1))
            one = make_trace(
                sample,
                role=role,
                correct=len(kept) == NUM_ITEMS,
                response=tuple(generator.integers(3000, 9000, NUM_ITEMS * TOKENS_EACH).tolist()),
                arrays={"span_mass": (("layer", "head", "row", "span"), mass)} if role == "baseline" else None,
            )
            one.dataset = one.dataset.assign_coords(span=["prompt"]) if role == "baseline" else one.dataset
            assert one.outcome is not None
            one.outcome = dataclasses.replace(one.outcome, response=" ".join(f"<ITEM {k + 1}>" for k in kept))
            made.append(one)
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: 20 answers of 12 items, each constraint kept with the same chance, which the seed draws from 0.1 to
    0.95."""
    generator = np.random.default_rng(seed)
    chance = float(generator.uniform(0.1, 0.95))
    return answers(lambda _: chance, generator)


def null_guessing(seed: int) -> list[Any]:
    """Synthetic: one constraint of five is kept, with the text and without it."""
    return answers(lambda _: 0.2, np.random.default_rng(seed), absent=0.2)


def null_rising(seed: int) -> list[Any]:
    """Synthetic: constraints are kept more often late than early."""
    return answers(lambda at: 0.5 + 0.3 * at, np.random.default_rng(seed))


def planted(strength: float, seed: int) -> list[Any]:
    """The chance that a constraint is kept, 0.9 at the first item, falls by this much up to the last."""
    return answers(lambda at: EARLY - strength * at, np.random.default_rng(seed))
