from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tests.analyses.conftest import NUM_HEADS, NUM_LAYERS, NUM_STEPS, make_keys, make_sample, make_trace
from tests.effects.models import needle_traces

NUM_PROMPTS = 20
DEPTHS = (0.1, 0.5, 0.9)
TRUTH = {(2, 1), (1, 3)}
STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def prompts(seed: int) -> list[Any]:
    """Prompts that are answered right, half of them to find heads with."""
    return [
        make_sample(seed * NUM_PROMPTS + i, depth=DEPTHS[i % 3], half=("find", "test")[i % 2])
        for i in range(NUM_PROMPTS)
    ]


def moved(sample: Any, shift: int) -> Any:
    """The sample with the needle's spans so many tokens further on, its text as it was."""
    spans = tuple(
        dataclasses.replace(span, start=span.start + shift, stop=span.stop + shift)
        if span.name in ("needle", "needle_value")
        else span
        for span in sample.spans
    )
    return dataclasses.replace(sample, spans=spans)


def null(seed: int) -> list[Any]:
    """Synthetic: 12 heads whose largest attention lies on a token drawn at random from the whole prompt, answers all
    right."""
    generator = np.random.default_rng(seed)
    shape = (NUM_LAYERS, NUM_HEADS, NUM_STEPS)
    return [make_trace(s, keys=generator.integers(0, len(s), shape)) for s in prompts(seed)]


def null_looking(seed: int) -> list[Any]:
    """Synthetic: two heads that always look into the answer's place in the needle, at a token of it drawn at random,
    whatever is being written."""
    generator = np.random.default_rng(seed)
    made = []
    for i, sample in enumerate(prompts(seed)):
        keys = make_keys(sample, {}, seed=seed * NUM_PROMPTS + i)
        value = sample.span("needle_value")
        for head in TRUTH:
            keys[head] = generator.integers(value.start, value.stop, NUM_STEPS)
        made.append(make_trace(sample, keys=keys))
    return made


def null_permuted(seed: int) -> list[Any]:
    """Permuted: the two heads of the strongest plant, and the answer's span moved elsewhere in the prompt."""
    generator = np.random.default_rng(seed)
    made = []
    for i, sample in enumerate(prompts(seed)):
        keys = make_keys(sample, dict.fromkeys(TRUTH, 1.0), seed=seed * NUM_PROMPTS + i)
        place = sample.span("needle")
        starts = [s for s in range(1, len(sample) - 12) if s + 8 <= place.start or s >= place.stop]
        shift = int(generator.choice(starts)) - place.start
        made.append(make_trace(moved(sample, shift), keys=keys))
    return made


def planted(strength: float, seed: int) -> list[Any]:
    """Two of 12 heads look at each step, with this chance, at the very token being written, and elsewhere outside the
    needle otherwise, as the other heads always do."""
    copying = dict.fromkeys(TRUTH, strength)
    samples = prompts(seed)
    return [make_trace(s, keys=make_keys(s, copying, seed=seed * NUM_PROMPTS + i)) for i, s in enumerate(samples)]


def null_trained(seed: int) -> list[Any]:
    """Permuted: the specimen `needle`, four of whose heads retrieve, on 20 prompts that it answers, with the needle's
    span moved to another place of its prompt."""
    generator = np.random.default_rng(seed)
    made = []
    for trace in needle_traces((64, 128), 2, True):
        place = trace.sample.span("needle")
        starts = [s for s in range(len(trace.sample) - 24) if s + len(place) <= place.start or s >= place.stop]
        shift = int(generator.choice(starts)) - place.start
        made.append(dataclasses.replace(trace, sample=moved(trace.sample, shift)))
    return made
