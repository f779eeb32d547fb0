"""The first value that is not finite is found where it was planted, in words, and nothing is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probe.hooks.models.huggingface import HuggingFaceModel, load
from probe.hooks.sequence.non_finite import first_non_finite

PROMPT = [*range(3, 24), 41, *range(3, 12)]  # token 41 at position 21 alone


def planted(model: HuggingFaceModel, name: str, index: Any, value: float = torch.nan) -> None:
    with torch.no_grad():
        model.hf.get_parameter(name)[index] = value


@pytest.fixture
def llama(make: Any) -> HuggingFaceModel:
    return load(make("llama-gqa"))


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2", "gemma2-softcap", "gpt-neox", "gpt-oss-sinks", "phi3"])
def test_nothing_is_found_where_all_is_finite_and_no_hook_is_left(make: Any, kind: str) -> None:
    model = load(make(kind))
    assert first_non_finite(model, PROMPT, chunk_tokens=8) is None
    assert first_non_finite(model, []) is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("chunk_tokens", [8, 2048])
@pytest.mark.parametrize(
    ("name", "index", "place"),
    [
        ("model.embed_tokens.weight", (41, 3), "in the embedding of token 41 at position 21"),
        ("model.layers.1.self_attn.q_proj.weight", (2, 3), "in layer 1, position 0, after its attention's q_proj"),
        ("model.layers.1.mlp.down_proj.weight", (2, 3), "in layer 1, position 0, after its MLP's down_proj"),
        (
            "model.layers.0.post_attention_layernorm.weight",
            5,
            "in layer 0, position 0, after its post_attention_layernorm",
        ),
        ("model.norm.weight", 5, "at position 0, after model.norm"),
        ("lm_head.weight", (17, 3), "in the logits at position 0, first in that of token 17"),
    ],
)
def test_a_planted_nan_is_found(
    make: Any, attention: str, chunk_tokens: int, name: str, index: Any, place: str
) -> None:
    model = load(make("llama-gqa", attention))
    planted(model, name, index)
    said = first_non_finite(model, PROMPT, chunk_tokens=chunk_tokens)
    assert said == f"{place}; {name} holds 1 value that is not finite"


@pytest.mark.parametrize(
    ("kind", "name", "place"),
    [
        ("gpt2", "transformer.wpe.weight", "at position 21, after transformer.wpe"),
        ("gpt2", "transformer.h.1.mlp.c_proj.bias", "in layer 1, position 0, after its MLP's c_proj"),
        ("gpt-neox", "gpt_neox.layers.1.attention.dense.bias", "in layer 1, position 0, after its attention's dense"),
        ("gpt-oss-sinks", "model.layers.1.self_attn.sinks", "in layer 1, position 0, before its attention's o_proj"),
    ],
)
def test_other_architectures(make: Any, kind: str, name: str, place: str) -> None:
    model = load(make(kind))
    planted(model, name, 21 if "wpe" in name else 1)
    assert str(first_non_finite(model, PROMPT)).startswith(f"{place}; {name} holds ")


def test_a_value_that_overflows_is_found_where_the_weights_are_finite(llama: HuggingFaceModel) -> None:
    planted(llama, "model.layers.1.mlp.gate_proj.weight", slice(None), 1e25)
    planted(llama, "model.layers.1.mlp.up_proj.weight", slice(None), 1e25)
    assert first_non_finite(llama, PROMPT) == "in layer 1, position 0, before its MLP's down_proj"


def test_a_bad_key_is_found_at_its_own_position_though_attention_spreads_it(llama: HuggingFaceModel) -> None:
    planted(llama, "model.embed_tokens.weight", (slice(None), 3), 0)
    planted(llama, "model.embed_tokens.weight", (41, slice(None)), 0)
    planted(llama, "model.embed_tokens.weight", (41, 3), 1)
    planted(llama, "model.layers.0.self_attn.k_proj.weight", (slice(None), 3), 3e38)
    assert first_non_finite(llama, PROMPT) == "in layer 0, position 21, after its attention's k_proj"


def test_of_many_bad_tensors_a_few_are_named(llama: HuggingFaceModel) -> None:
    for parameter in llama.hf.parameters():
        parameter.detach().fill_(torch.inf)
    said = str(first_non_finite(llama, PROMPT)).split("; ")
    assert len(said) == 1 + 3 + 1
    assert said[0] == "in the embedding of token 3 at position 0"
    assert said[-1] == f"and so do {len(list(llama.hf.parameters())) - 3} more of its tensors"


def test_bad_weights_that_no_token_touches_are_no_finding(llama: HuggingFaceModel) -> None:
    planted(llama, "model.embed_tokens.weight", (60, 3))
    assert first_non_finite(llama, PROMPT) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_is_judged(make: Any, dtype: torch.dtype) -> None:
    model = load(make("llama-gqa").to(dtype))
    planted(model, "model.layers.1.mlp.down_proj.weight", (2, 3), torch.inf)
    assert "layer 1, position 0" in str(first_non_finite(model, PROMPT))
