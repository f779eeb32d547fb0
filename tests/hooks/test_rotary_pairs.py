"""Which channels turn together is seen in each model's queries; the parts then sum to the model's own logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import probe
from probe.errors import NotReproducible
from probe.hooks.loading.rotary_pairs import rotary_pairs

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}


def made(kind: str, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **fields}))
    return model.eval()


def halves(first: int, num: int) -> list[list[int]]:
    return [[first + d, first + d + num] for d in range(num)]


def neighbours(first: int, num: int) -> list[list[int]]:
    return [[first + 2 * d, first + 2 * d + 1] for d in range(num)]


MODELS: dict[str, tuple[str, dict[str, Any], list[list[int]]]] = {
    "llama": ("llama", {}, halves(0, 8)),
    "yarn": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                             "original_max_position_embeddings": 64}},
        halves(0, 8),
    ),
    "cohere": ("cohere", {}, neighbours(0, 8)),
    "half of each head turns": ("gpt_neox", {"rotary_pct": 0.5}, halves(0, 4)),
    "phi": ("phi", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, halves(0, 4)),
    "gptj": ("gptj", {"n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8, "n_positions": 256}, neighbours(0, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_pairs_are_those_that_the_model_turns(name: str) -> None:
    kind, fields, wanted = MODELS[name]
    model = made(kind, **fields)
    found = rotary_pairs(model)
    assert sorted(found) == [0, 1]
    assert {layer: pairs.tolist() for layer, pairs in found.items()} == {0: wanted, 1: wanted}
    assert torch.equal(rotary_pairs(model.bfloat16())[0], found[0])


def test_a_latent_heads_last_channels_turn() -> None:
    sizes = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 16}
    found = rotary_pairs(made("deepseek_v3", num_key_value_heads=4, first_k_dense_replace=2, **sizes))
    assert found[0].flatten().sort().values.tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize(("kind", "has"), [("gpt2", "learned"), ("bloom", "ALiBi")])
def test_a_model_that_does_not_turn_is_refused_with_the_kind_that_is_needed(kind: str, has: str) -> None:
    model = made(kind)
    with pytest.raises(NotReproducible, match=rf"no rotary positions \({has}\).*RoPE"):
        probe.trace(model, list(range(3, 40)), statistics="rope_share", check=False)
    left = probe.trace(model, list(range(3, 40)), statistics=["entropy", "rope_share"], check=False)
    assert "RoPE" in left.provenance["left_out"]["rope_share"]
    assert "rope_share" not in left


@pytest.mark.parametrize("name", ["llama", "half of each head turns", "cohere"])
def test_a_traces_arrays_do_not_depend_on_chunks(name: str) -> None:
    kind, fields, wanted = MODELS[name]
    model = made(kind, **fields)
    tokens = np.random.default_rng(0).integers(3, 61, 150).tolist()
    names = ["rope_share", "rope_correlation"]
    whole = probe.trace(model, tokens, statistics=names, check=False, max_new_tokens=1)
    pieces = probe.trace(model, tokens, statistics=names, check=False, max_new_tokens=1, chunk_tokens=23)
    assert whole["rope_share"].dims == ("layer", "head", "distance_bin", "rope_pair")
    assert whole["rope_share"]["distance_bin"].values.tolist() == [0, 1, 2, 4, 8, 16, 32, 64, 128]
    # Channels that do not turn are one part more.
    assert whole["rope_share"].sizes["rope_pair"] == len(wanted) + (2 * len(wanted) < 16)
    for each in ("rope_share", "rope_correlation", "rope_correlation_distance", "rope_correlation_shuffled"):
        np.testing.assert_allclose(pieces[each].values, whole[each].values, atol=1e-4)


def test_a_specimens_training_length_is_its_cards() -> None:
    model = probe.load("needle")
    assert model.positions(64)["training_length"] == {"tokens": 256, "source": "specimen.json"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "expected"), [("llama", halves(0, 32)), ("cohere", neighbours(0, 32))])
def test_rounding_of_many_layers_hides_no_rotation(kind: str, expected: list[list[int]], dtype: torch.dtype) -> None:
    deep = {"num_hidden_layers": 24, "hidden_size": 256, "head_dim": 64, "initializer_range": 0.02}
    pairs = rotary_pairs(made(kind, **deep).to(dtype))
    assert len(pairs) == 24
    assert all(each.tolist() == expected for each in pairs.values())
