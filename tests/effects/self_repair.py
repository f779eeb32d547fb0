from __future__ import annotations

from typing import Any

import numpy as np

from tests.analyses.conftest import make_sample, make_trace
from tests.effects.models import permuted, writes_without

NUM_PROMPTS, NUM_DRAWS = 16, 20
LAYERS, HEADS = 4, 6
REMOVED = [[1, 0], [1, 3]]
STRENGTHS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
TRUTH = [(2, 4), (3, 1)]


def found(finding: Any) -> frozenset[tuple[int, int]]:
    """The heads that a finding says make up for the removed ones."""
    return frozenset((row["layer"], row["head"]) for row in finding.records() if row["makes_up"])


def experiment(repair: float, seed: int, *, scale: float = 1.0, scatter: float = 0.15) -> list[Any]:
    """Prompts under all three conditions; the removed heads write 2 logits each, and what each removal changes in each
    head behind it scatters from removal to removal and from prompt to prompt."""
    generator = np.random.default_rng(seed)
    typical = 0.2 * generator.standard_normal((LAYERS, HEADS))
    for head in REMOVED:
        typical[tuple(head)] = 2.0
    drawn = [(2, int(i), int(j)) for i, j in zip(*_pairs(generator), strict=True)]
    shifts = scatter * generator.standard_normal((NUM_DRAWS + 1, LAYERS, HEADS))
    made = []
    for i in range(NUM_PROMPTS):
        sample, level = make_sample(i), generator.uniform(0.7, 1.3)
        own = level * typical + 0.05 * generator.standard_normal((LAYERS, HEADS))
        made.append(_trace(sample, own))
        for number in range(NUM_DRAWS + 1):
            after = own.copy()
            noise = 0.05 * generator.standard_normal((LAYERS, HEADS))
            after[2:] += shifts[number, 2:] + noise[2:]
            heads = REMOVED if number == 0 else [[1, each] for each in drawn[number - 1][1:]]
            if number == 0:
                for layer, head in TRUTH:
                    after[layer, head] += repair * 2.0 * level
            grown = scale if number == 0 else 1 + 0.02 * generator.random()
            role, draw = ("treatment", None) if number == 0 else ("control", number - 1)
            made.append(_trace(sample, grown * after, role=role, draw=draw, heads=heads))
    return made


def _pairs(generator: np.random.Generator) -> tuple[Any, Any]:
    left = [head for head in range(HEADS) if [1, head] not in REMOVED]
    picked = [generator.choice(left, 2, replace=False) for _ in range(NUM_DRAWS)]
    return [p[0] for p in picked], [p[1] for p in picked]


def _trace(sample: Any, writes: np.ndarray, heads: Any = None, **facts: Any) -> Any:
    arrays = {"span_logit_all": (("layer", "head", "row"), writes[:, :, None].astype(np.float32))}
    removed = heads and {"ablate_heads": {"heads": heads, "form": "zero", "phase": "both"}}
    return make_trace(sample, arrays=arrays, intervention=removed, **facts)


def null(seed: int) -> list[Any]:
    """Synthetic: 16 prompts; what the heads behind write changes as it does when any others are removed."""
    return experiment(0.0, seed)


def null_norm(seed: int) -> list[Any]:
    """Synthetic: the same, and the final norm's scale grows by a half when the found heads are removed, so that every
    head left writes more."""
    return experiment(0.0, seed, scale=1.5)


def planted(strength: float, seed: int) -> list[Any]:
    """Two heads behind the removed ones each write this share of what one of those wrote more than before."""
    return experiment(strength, seed)


def null_trained(seed: int) -> list[Any]:
    """Trained: the specimen `needle` on 8 prompts of 128 tokens without four heads of its second layer, 30 such sets;
    one of them plays the heads that were found, and 20 others the control."""
    untouched, sets = writes_without(1, 30, 8)
    made = []
    for number, (heads, traces) in enumerate(permuted(sets, seed)[: NUM_DRAWS + 1]):
        removed = {"ablate_heads": {"heads": heads, "form": "zero", "phase": "both"}}
        role, draw = ("treatment", None) if number == 0 else ("control", number - 1)
        for sample, array in zip(untouched[0], traces, strict=True):
            arrays = {"span_logit_all": (("layer", "head", "row"), array)}
            made.append(make_trace(sample, arrays=arrays, role=role, draw=draw, intervention=removed))
    for sample, array in zip(*untouched, strict=True):
        made.append(make_trace(sample, arrays={"span_logit_all": (("layer", "head", "row"), array)}))
    return made
