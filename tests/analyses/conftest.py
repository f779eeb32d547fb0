"""Traces with a planted effect, so that what an analysis must find is known before it looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import xarray as xr

from probe.outcome import Outcome
from probe.sample import Sample, Span

NUM_LAYERS, NUM_HEADS, NUM_STEPS = 3, 4, 4


@dataclass
class StandIn:
    """A trace by its attributes alone, as analyses use it."""

    sample: Sample
    outcome: Outcome | None
    dataset: xr.Dataset = field(default_factory=xr.Dataset)
    facts: Mapping[str, Any] = field(default_factory=dict)
    condition: str = "baseline"
    stage: str = "read"
    unit: str = ""
    parts: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> xr.DataArray:
        return self.dataset[name]

    def __contains__(self, name: str) -> bool:
        return name in self.dataset


def make_sample(index: int = 0, *, length: int = 64, depth: float = 0.5, **facts: Any) -> Sample:
    """A prompt of distinct tokens: needle of 8 from its depth on, its last 4 the answer, a question of 4 at the end."""
    start = 1 + round(depth * (length - 14))
    tokens = tuple(range(1000, 1000 + length))
    return Sample(
        name=f"needle-{length}-{depth:.2f}-s{index}",
        tokens=tokens,
        spans=(
            Span("needle", start, start + 8),
            Span("needle_value", start + 4, start + 8),
            Span("question", length - 4, length),
        ),
        answer_tokens=tokens[start + 4 : start + 8],
        facts={"length": length, "needle_depth": depth, "num_tokens": length, "seed": index, **facts},
    )


def make_trace(
    sample: Sample,
    *,
    correct: bool | None = True,
    keys: np.ndarray | None = None,
    response: tuple[int, ...] | None = None,
    loss: float = 0.1,
    arrays: Mapping[str, tuple[tuple[str, ...], np.ndarray]] | None = None,
    role: str | None = "baseline",
    draw: int | None = None,
    intervention: Mapping[str, Any] | None = None,
    failed: str | None = None,
    **outcome: Any,
) -> StandIn:
    """A trace of this sample; `keys [layer head row]` is where each head looks."""
    data = dict(arrays or {})
    if keys is not None:
        data["top_keys_k_1_probability"] = (
            ("layer", "head", "row", "rank"),
            np.full((*keys.shape, 1), 0.9, np.float32),
        )
        data["top_keys_k_1"] = (("layer", "head", "row", "rank"), keys[..., None].astype(np.int32))
    wrong = tuple(1 for _ in sample.answer_tokens)
    said = response if response is not None else (sample.answer_tokens if correct else wrong)
    return StandIn(
        sample=sample,
        outcome=Outcome(
            **{
                "response_tokens": said,
                "correct": correct,
                "success_rule": "exact",
                "answer_log_probability": (-loss,) * len(sample.answer_tokens),
                "text_loss": 1.0,
                "failed": failed,
                **outcome,
            }
        ),
        dataset=xr.Dataset(data),
        facts={"role": role, "draw": draw, "intervention": intervention},
        condition=str(role),
        unit=f"{role}-{draw}-{sample.name}",
    )


def make_keys(sample: Sample, copying: Mapping[tuple[int, int], float], seed: int = 0) -> np.ndarray:
    """Where each head looks: at the token to copy with the given probability, else at random outside the needle."""
    generator = np.random.default_rng(seed)
    place, value = sample.span("needle"), sample.span("needle_value")
    outside = np.setdiff1d(np.arange(len(sample)), np.arange(place.start, place.stop))
    keys = generator.choice(outside, size=(NUM_LAYERS, NUM_HEADS, NUM_STEPS))
    for head, probability in copying.items():
        hit = generator.random(NUM_STEPS) < probability
        keys[head] = np.where(hit, value.start + np.arange(NUM_STEPS), keys[head])
    return keys


@pytest.fixture(scope="session")
def sample() -> Callable[..., Sample]:
    return make_sample


@pytest.fixture(scope="session")
def trace() -> Callable[..., StandIn]:
    return make_trace


@pytest.fixture(scope="session")
def looking() -> Callable[..., np.ndarray]:
    return make_keys
