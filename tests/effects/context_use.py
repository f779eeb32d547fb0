from __future__ import annotations

from typing import Any

import numpy as np

from probe.sample import Sample, Span
from tests.analyses.conftest import make_trace

LENGTHS, NEAR, TARGETS, NUM_PROMPTS = (64, 129, 256, 512), 128, 32, 24
STRENGTHS = (0.0, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.2)
NOISE = 0.3
"""By how much a token's loss moves with the prefix, whatever stands there; standard deviation, in nats."""


def stretch(prompt: int, length: int, distant: str, losses: np.ndarray, **facts: Any) -> Any:
    """A trace of `plain_text` in which the due tokens have these losses."""
    seen = [None if at % 3 == 0 else 40 + at if at % 3 == 1 else 200 + at for at in range(len(losses))]
    sample = Sample(
        name=f"plain_text-{length}-s{prompt}",
        tokens=tuple(range(length)),
        spans=(Span("near", max(0, length - NEAR), length),),
        answer_tokens=tuple(range(len(losses))),
        success_rule="none",
        facts={
            "length": length,
            "seed": prompt,
            "workload_seed": 0,
            "distant": distant,
            "near": NEAR,
            "disturbed_tokens": max(0, length - 1 - NEAR) if distant != "kept" else 0,
            "target_last_seen": seen,
            "target_frequent": [at % 2 == 0 for at in range(len(losses))],
            "target_begins_word": [at % 4 > 0 for at in range(len(losses))],
            "unknown_tokens": 0.0,
            **facts,
        },
    )
    along = np.concatenate([[np.nan], np.full(length - 1, 3.0 + 0.01 * prompt)])
    made = make_trace(sample, role="baseline" if distant == "kept" else "other", arrays={"loss": (("token",), along)})
    fields = {**vars(made.outcome), "correct": None, "answer_log_probability": tuple((-losses).tolist())}
    made.outcome = type(made.outcome)(**fields)
    made.condition = made.unit = f"{distant}-{sample.name}"
    return made


def stretches(seed: int, kept: float, shuffled: float, noise: float = NOISE) -> list[Any]:
    """Prompts whose losses fall by so much, in nats, where a distant part stands before them as it is, and shuffled."""
    generator = np.random.default_rng(seed)
    made = []
    for prompt in range(NUM_PROMPTS):
        own = generator.gamma(2.0, 1.5, TARGETS) + 2.0
        for length in LENGTHS:
            for distant, gain in (("kept", kept), ("shuffled", shuffled)):
                far = gain if length > NEAR + 1 else 0.0
                losses = own - far + noise * generator.standard_normal(TARGETS)
                made.append(stretch(prompt, length, distant, losses))
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: 24 prompts of 32 words whose losses do not depend on what stands far back."""
    return stretches(seed, 0.0, 0.0)


def null_length(seed: int) -> list[Any]:
    """Synthetic: as the first, and any longer prefix takes 0.15 nats off, shuffled or not."""
    return stretches(seed, 0.15, 0.15)


def null_guessing(seed: int) -> list[Any]:
    """Synthetic: a model that guesses evenly, as an untrained one nearly does, whatever stands before."""
    generator = np.random.default_rng(seed)
    drawn = [np.log(512) + 0.01 * generator.standard_normal(TARGETS) for _ in range(NUM_PROMPTS)]
    return [
        stretch(prompt, length, distant, drawn[prompt] + 0.001 * generator.standard_normal(TARGETS))
        for prompt in range(NUM_PROMPTS)
        for length in LENGTHS
        for distant in ("kept", "shuffled")
    ]


def planted(strength: float, seed: int) -> list[Any]:
    """A distant part takes so many nats a token off the loss of 32 words, and shuffled nothing, over 24 prompts."""
    return stretches(seed, strength, 0.0)
