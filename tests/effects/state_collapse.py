from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM

import probe
from probe.hooks.models.huggingface import load
from probe.sample import Sample
from tests.analyses.conftest import make_sample, make_trace

TRAINED, LENGTH, EVERY = 64, 256, 16
SHAPE = (2, 4)
TRUTH = {(0, 0), (0, 2), (1, 3)}
"""Heads whose state is planted to grow."""
NUM_RECENT, NUM_OLD = 30, 10
ABLE = 0.95
"""Chance of a right answer where nothing is lost."""
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8)


def texts(growth: float, recent: float, old: float, seed: int, alone: float = ABLE) -> list[Any]:
    """Texts of four training lengths, whose states saturate within the first but for the planted heads'.

    `growth` is what each doubling beyond the training length multiplies their variance by; `recent` and `old` are the
    chances of a right answer in the whole text, `alone` that from its end alone.
    """
    generator = np.random.default_rng(seed)
    tokens = np.arange(EVERY, LENGTH + 1, EVERY)
    doublings = np.log2(np.maximum(tokens / TRAINED, 1))
    made = []
    for i in range(NUM_RECENT + NUM_OLD):
        is_recent = i < NUM_RECENT
        sample = make_sample(
            i, length=LENGTH, depth=0.95 if is_recent else 0.0, half=("find", "test")[i % 2], trained=TRAINED
        )
        log = np.log1p(-np.exp(-tokens / EVERY)) + 0.1 * generator.standard_normal((*SHAPE, len(tokens)))
        for head in TRUTH:
            log[head] += np.log(growth) * doublings
        variance = np.exp(log)
        arrays = {
            "state_variance_every_16": (("layer", "state_head", "position"), variance),
            "state_mean_every_16": (("layer", "state_head", "position"), np.zeros_like(variance)),
            "state_max_every_16": (("layer", "state_head", "position"), 4 * np.sqrt(variance)),
        }
        known = bool(generator.random() < alone)
        lost = bool(generator.random() >= (recent if is_recent else old))
        whole = make_trace(sample, correct=known and not lost, arrays=arrays)
        whole.dataset = whole.dataset.assign_coords(position=tokens - 1)
        whole.provenance = {
            "recurrent_layers": {"mamba2": [0, 1]},
            "positions": {"layers": {}, "training_length": {"tokens": TRAINED, "source": "max_position_embeddings"}},
        }
        made += [whole, make_trace(sample, correct=known, role="gold_only")]
    return made


def null(seed: int) -> list[Any]:
    """Synthetic: states that saturate within the training length; recent answers are kept, older ones forgotten."""
    return texts(1.0, 1.0, 0.1, seed)


def null_drift(seed: int) -> list[Any]:
    """Synthetic: three of 8 heads' states grow fourfold with each doubling, and no answer is lost for it."""
    return texts(4.0, 1.0, 1.0, seed)


def null_in_range(seed: int) -> list[Any]:
    """Synthetic: recent answers are lost in long texts, and every head's state stays where it was."""
    return texts(1.0, 0.3, 0.0, seed)


def null_unable(seed: int) -> list[Any]:
    """Synthetic: states grow, and the model answers 3 % of the time, from whatever text."""
    return texts(4.0, 1.0, 1.0, seed, alone=0.03)


def null_random_weights(seed: int) -> list[Any]:
    """A Mamba-2 with random weights reads random tokens, three times as many as the length that its configuration
    says; nothing is asked, so that its loss is what counts."""
    torch.manual_seed(seed)
    config = Mamba2Config(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=8,
        state_size=8,
        n_groups=1,
        chunk_size=16,
        initializer_range=float(np.random.default_rng(seed).uniform(0.05, 1.0)),
        max_position_embeddings=16,
    )
    model = load(Mamba2ForCausalLM(config).eval())
    asked = [{name: {"every": 4}} for name in ("state_variance", "state_mean", "state_max")]
    drawn = torch.randint(3, 32, (6, 48)).tolist()
    return [
        probe.trace(
            model, Sample(f"s{i}", tuple(row), facts={"half": ("find", "test")[i % 2]}), statistics=[*asked, "loss"]
        )
        for i, row in enumerate(drawn)
    ]


def planted(strength: float, seed: int) -> list[Any]:
    """Three of 8 heads' variance is multiplied by 1 + 4 × strength with each doubling beyond the training length, and
    this share of the recent answers is lost."""
    return texts(1 + 4 * strength, 1 - strength, 1 - strength, seed)


def found(finding: Any) -> frozenset[tuple[int, int]]:
    """The heads that are said to explode."""
    return frozenset((row["layer"], row["state_head"]) for row in finding.records() if row["explodes"])
