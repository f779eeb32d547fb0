"""Models that torch.compile compiled: nothing of them escapes the watch, and nothing is changed for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe.errors import NotReproducible
from probe.hooks.models.huggingface import load

TOKENS = list(range(3, 30))
pytestmark = pytest.mark.filterwarnings("ignore")


def whole(hf: Any) -> Any:
    return torch.compile(hf, backend="eager")


def in_place(hf: Any) -> Any:
    hf.compile(backend="eager")
    return hf


def layers(hf: Any) -> Any:
    for i, layer in enumerate(hf.model.layers):
        hf.model.layers[i] = torch.compile(layer, backend="eager")
    return hf


def attention(hf: Any) -> Any:
    for layer in hf.model.layers:
        layer.self_attn.compile(backend="eager")
    return hf


def forward(hf: Any) -> Any:
    hf.forward = torch.compile(hf.forward, backend="eager")
    return hf


def body(hf: Any) -> Any:
    hf.model = torch.compile(hf.model, backend="eager")
    return hf


@pytest.mark.parametrize("how", [whole, in_place, layers, attention, forward, body])
def test_a_compiled_model_is_read_uncompiled_and_says_so(make: Any, how: Callable[[Any], Any]) -> None:
    statistics = ["entropy", "received_mass", "residual_norm", "loss"]
    expected = probe.trace(make("llama-gqa"), TOKENS, statistics=statistics, max_new_tokens=2, chunk_tokens=8)
    compiled = how(make("llama-gqa"))
    # Compiled code that was made before a hook is what would not see it.
    compiled(torch.tensor([TOKENS]))
    found = probe.trace(compiled, TOKENS, statistics=statistics, max_new_tokens=2, chunk_tokens=8)
    for name in statistics:
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]), err_msg=name)
    assert found.provenance["compiled_and_run_uncompiled"]
    assert not expected.provenance["compiled_and_run_uncompiled"]
    assert found.provenance["weights_sha256"] == expected.provenance["weights_sha256"]
    # Afterwards it is compiled as before.
    assert load(compiled).compiled


def test_a_wrapper_called_within_the_block_is_seen_too(make: Any) -> None:
    hf = make("llama-gqa")
    wrapper = torch.compile(hf, backend="eager")
    wrapper(torch.tensor([TOKENS]))
    seen = []
    with load(hf).calls(lambda _, call: seen.append(call.num_queries)):
        wrapper(torch.tensor([TOKENS]))
    assert seen == [len(TOKENS) - 1, 1] * 2


def test_a_compiled_model_with_flex_attention_is_refused(make: Any) -> None:
    hf = make("llama-gqa")
    hf.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(NotReproducible, match=r"compiled by torch\.compile and attends by flex_attention"):
        load(in_place(hf))


def test_a_model_in_training_mode_is_refused_where_it_runs(make: Any) -> None:
    loaded = load(make("llama-gqa", attention_dropout=0.5))
    loaded.hf.train()
    with pytest.raises(NotReproducible, match="training mode"), loaded.calls(lambda *_: None):
        loaded.hf(torch.tensor([TOKENS]))


def test_a_checkpointed_model_in_training_mode_is_put_into_evaluation_mode(make: Any) -> None:
    expected = probe.trace(make("llama-gqa"), TOKENS, statistics=["entropy"])
    hf = make("llama-gqa", attention_dropout=0.5).train()
    hf.gradient_checkpointing_enable()
    found = probe.trace(hf, TOKENS, statistics=["entropy"])
    np.testing.assert_array_equal(np.asarray(found["entropy"]), np.asarray(expected["entropy"]))
