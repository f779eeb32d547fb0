"""Heads that forget faster: their decay to a power, nothing else, and the model unharmed afterwards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import probe
from probe.errors import UsageError
from probe.hooks.forget_faster import forget_faster
from probe.hooks.intervention import Intervention
from probe.hooks.models.huggingface import load


@pytest.mark.parametrize("kind", ["mamba2", "bamba", "zamba2", "falcon_h1", "nemotron_h"])
def test_the_decay_is_raised_to_the_factor_and_nothing_else_changes(kind, make, tokens):
    model, ids = load(make(kind)), tokens(20)
    weights = {name: value.clone() for name, value in model.hf.state_dict().items()}
    asked = ["decay", "input_gate"]
    before = probe.trace(model, ids, statistics=asked)
    with forget_faster([(0, 1), (0, 3)], [3.0, 0.5])(model):
        inside = probe.trace(model, ids, statistics=asked)
    after = probe.trace(model, ids, statistics=asked)
    plain, changed = (trace["decay"].values.astype(np.float64) for trace in (before, inside))
    np.testing.assert_allclose(changed[0, 1], plain[0, 1] ** 3, rtol=1e-5)
    np.testing.assert_allclose(changed[0, 3], plain[0, 3] ** 0.5, rtol=1e-5)
    assert (changed[0, [0, 2]] == plain[0, [0, 2]]).all()
    assert (inside["input_gate"].values[0] == before["input_gate"].values[0]).all()
    np.testing.assert_array_equal(after["decay"].values, before["decay"].values)
    assert all(torch.equal(value, weights[name]) for name, value in model.hf.state_dict().items())


@pytest.mark.parametrize(("kind", "head"), [("mamba", 0), ("falcon_mamba", 0), ("jamba", 0), ("zamba", 1)])
def test_every_component_of_a_mamba_head_forgets_faster(kind, head, make, tokens):
    model = load(make(kind))
    layer = min(model.recurrent_layers)
    rates = model.recurrent_layers[layer].module().A_log
    before = rates.detach().clone()
    of_head = before if before.ndim == 2 else before[head]
    with forget_faster([(layer, head)], [2.0])(model):
        now = rates.detach() if before.ndim == 2 else rates.detach()[head]
        # exp(-Δ exp(A_log)) squared has twice the exponent.
        torch.testing.assert_close(now.exp(), 2 * of_head.exp())
    assert torch.equal(rates, before)
    with pytest.raises(RuntimeError, match="stop"), forget_faster([(layer, head)], [2.0])(model):
        raise RuntimeError("stop")
    assert torch.equal(rates, before)
    assert rates.requires_grad


def test_it_nests_and_is_known_by_its_fields(make):
    model = load(make("mamba2"))
    rates = model.recurrent_layers[1].module().A_log
    before = rates.detach().clone()
    with forget_faster([(1, 2)], [2.0])(model), forget_faster([(1, 3)], [3.0])(model.hf):
        assert rates[2].item() == pytest.approx(before[2].item() + np.log(2))
        assert rates[3].item() == pytest.approx(before[3].item() + np.log(3))
    assert torch.equal(rates, before)
    made = forget_faster([[1, 2], [0, 0]], [2, 30])
    assert Intervention.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(
    ("kind", "heads", "factors", "message"),
    [
        ("mamba2", [(2, 0)], [2.0], "layer 2 does not recur; 0, 1 does"),
        ("mamba2", [(0, 8)], [2.0], "has 8 heads, and no head 8"),
        ("mamba", [(0, 1)], [2.0], "has 1 heads, and no head 1"),
        ("rwkv", [(0, 0)], [2.0], r"\(rwkv4\) has no A_log"),
        ("bamba", [(1, 0)], [2.0], "layer 1 does not recur"),
        ("mamba2", [(0, 0)], [0.0], "above 0"),
        ("mamba2", [(0, 0)], [2.0, 3.0], "need as many factors"),
        ("mamba2", [(0, 0), (0, 0)], [2.0, 3.0], "each named once"),
        ("mamba2", ["x"], [2.0], "pairs of layer and head"),
    ],
)
def test_what_cannot_be_is_refused_by_name(kind, heads, factors, message, make):
    model = make(kind)
    with pytest.raises(UsageError, match=message), forget_faster(heads, factors)(model):
        pass
