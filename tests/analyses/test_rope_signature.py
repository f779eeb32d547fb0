from __future__ import annotations

import numpy as np
import pytest

from probe.analyses.measures.rope_signature import rope_signature
from probe.analyses.retrieval_heads import retrieval_heads
from tests.analyses.conftest import make_sample, make_trace

HEADS = [(0, 1), (1, 0), (1, 2)]
POSITIONS = {
    "layers": {"0": {"kind": "rotary", "table": "one"}, "1": {"kind": "rotary", "table": "one"}},
    # Wavelengths 6.3, 63, 628 and 6,283 tokens, of which two are above the training length.
    "rotary": {"one": {"inverse_frequencies": [1.0, 0.1, 0.01, 0.001]}},
    "training_length": {"tokens": 256, "source": "made"},
}


def planted(seed: int, slow: float):
    """Three layers of four heads; in HEADS slow pairs make `slow` of the logits from 64 tokens on, in others 0.3."""
    generator = np.random.default_rng(seed)
    share = np.zeros((2, 4, 9, 4), np.float32)
    for layer in range(2):
        for head in range(4):
            part = slow if (layer, head) in HEADS else 0.3
            share[layer, head] = [(1 - part) / 2, (1 - part) / 2, part / 2, part / 2]
    # What lies nearer than 64 tokens says something else, and is not to count.
    share[:, :, :7] = generator.dirichlet(np.ones(4), (2, 4, 7))
    number = np.broadcast_to(np.array([0, 9, 9, 9, 9, 9, 9, 5, 20], np.float32), (2, 4, 9))
    sample = make_sample(seed)
    keys = np.full((2, 4, len(sample.answer_tokens)), 0)
    for layer, head in HEADS:
        keys[layer, head] = np.arange(sample.span("needle_value").start, sample.span("needle_value").stop)
    axes = ("layer", "head", "distance_bin")
    made = make_trace(
        sample,
        keys=keys,
        arrays={"rope_share": ((*axes, "rope_pair"), share), "rope_share_num_pairs": (axes, number.copy())},
    )
    made.provenance["positions"] = POSITIONS
    made.dataset.coords["layer"] = [0, 1]
    return made


def test_the_signature_is_what_was_planted():
    found = rope_signature([planted(seed, 0.8) for seed in range(6)], HEADS)
    assert found is not None
    assert found.slow is not None
    np.testing.assert_allclose(found.chosen, [0.1, 0.1, 0.4, 0.4], atol=1e-6)
    np.testing.assert_allclose(found.others, [0.35, 0.35, 0.15, 0.15], atol=1e-6)
    assert found.slow.tolist() == [False, False, True, True]
    measured = found.measurement(0)
    assert measured is not None
    assert measured.value == pytest.approx(50, abs=1e-4)


def test_nothing_is_said_without_the_statistic_or_without_other_heads():
    traces = [planted(seed, 0.8) for seed in range(3)]
    assert rope_signature(traces, []) is None
    assert rope_signature(traces, [(0, head) for head in range(4)]) is None
    plain = make_trace(make_sample(0), keys=np.zeros((2, 4, 4), int))
    assert rope_signature([plain], HEADS) is None


def test_retrieval_heads_shows_it():
    finding = retrieval_heads([planted(seed, 0.8) for seed in range(6)])
    shown = {each.name: each for each in finding.details}
    assert shown[next(name for name in shown if "rotary pairs" in name)].value == pytest.approx(50, abs=1e-4)
    assert "retrieval_rope_pairs" in {figure.name for figure in finding.figures}
