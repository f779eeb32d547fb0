"""The cache statistics of a traced model are those of the keys and values in its own cache, in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, PreTrainedModel, Qwen3Config

import probe
from probe.sample import Sample
from probe.storage.array import Array
from probe.storage.store import MemoryStore

VOCABULARY = 61
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "head_dim": 12,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CACHE = [
    *("key_layer_similarity", "value_layer_similarity", "key_neighbour_similarity", "key_spectrum"),
    *("key_channel_energy", "key_norm", "top_keys"),
]


def built(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.eval()


def sliding() -> Any:
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    return Qwen3Config(**COMMON, sliding_window=7, use_sliding_window=True, layer_types=layers)


def cached(model: PreTrainedModel, tokens: list[int]) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Return keys and values of every layer, [kv_head, key, channel], from a float64 copy of the model."""
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    cache = DynamicCache()
    with torch.no_grad():
        exact(torch.tensor([tokens]), past_key_values=cache)
    return [layer.keys[0].numpy() for layer in cache.layers], [layer.values[0].numpy() for layer in cache.layers]


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


@pytest.mark.parametrize("chunk_tokens", [1, 15, 129, 2048])
@pytest.mark.parametrize("config", [lambda: LlamaConfig(**COMMON), sliding], ids=["llama", "qwen3-sliding-full"])
@pytest.mark.parametrize("length", [2, 150])
def test_the_statistics_are_those_of_the_models_own_cache(config: Any, chunk_tokens: int, length: int) -> None:
    model = built(config())
    tokens = np.random.default_rng(length).integers(3, VOCABULARY, length).tolist()
    trace = probe.trace(probe.load(model), tokens, statistics=CACHE, chunk_tokens=chunk_tokens)
    keys, values = cached(model, tokens)
    for layer, key in enumerate(keys):
        got = {str(name): trace[str(name)].isel(layer=layer).values for name in trace.dataset.data_vars}
        for name, tensors in (("key", keys), ("value", values)):
            similarity = got[f"{name}_layer_similarity"]
            if layer == 0:
                assert np.isnan(similarity).all()
            else:
                np.testing.assert_allclose(similarity, cosine(tensors[layer], tensors[layer - 1]), atol=1e-5)
        assert np.isnan(got["key_neighbour_similarity"][:, 0]).all()
        neighbour = got["key_neighbour_similarity"][:, 1:]
        np.testing.assert_allclose(neighbour, cosine(key[:, 1:], key[:, :-1]), atol=1e-5)
        np.testing.assert_allclose(got["key_channel_energy"], (key**2).mean(1), rtol=1e-4)
        assert (got["key_channel_energy_num_keys"] == length).all()
        assert (got["key_channel_energy_num_queries"] == min(32, length)).all()
        spectrum = np.linalg.svd(key, compute_uv=False) / np.sqrt(length)
        size = min(length, 12)
        np.testing.assert_allclose(got["key_spectrum"][:, :size], spectrum, atol=1e-5)
        share = spectrum**2 / (spectrum**2).sum(-1, keepdims=True)
        np.testing.assert_allclose(
            got["key_spectrum_effective_rank"], np.exp(-(share * np.log(share)).sum(-1)), rtol=1e-4
        )
        np.testing.assert_allclose(got["key_spectrum_participation_ratio"], 1 / (share**2).sum(-1), rtol=1e-4)
    # `rank` belongs to the keys of the decoding queries; a spectrum has an axis of its own.
    assert trace["top_keys"].sizes["rank"] == 8
    assert trace["key_spectrum"].sizes["component"] == 12


def test_a_layer_that_repeats_the_one_before_is_found_in_a_model() -> None:
    model = built(LlamaConfig(**COMMON))
    first, second, _ = model.model.layers
    with torch.no_grad():
        # The first layer adds nothing, so that the second reads what it read, with the same keys and values.
        first.self_attn.o_proj.weight.zero_()
        first.mlp.down_proj.weight.zero_()
        second.self_attn.k_proj.weight.copy_(first.self_attn.k_proj.weight)
        second.self_attn.v_proj.weight.copy_(-first.self_attn.v_proj.weight)
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, 200).tolist()
    statistics = ["key_layer_similarity", "value_layer_similarity"]
    trace = probe.trace(probe.load(model), tokens, statistics=statistics, chunk_tokens=64, pool_tokens=16)
    for name, planted in (("key_layer_similarity", 1.0), ("value_layer_similarity", -1.0)):
        similarity = trace[name].values
        assert trace[name].dims == ("layer", "kv_head", "key_block")
        assert np.isnan(similarity[0]).all()
        np.testing.assert_allclose(similarity[1], planted, atol=1e-6)
        assert (abs(similarity[2]) < 0.9).all()


def test_layers_of_different_widths_share_a_trace() -> None:
    store = MemoryStore()
    with store.begin_unit("u", sample=Sample("s", (1, 2))) as writer:
        for layer, size in enumerate((4, 6)):
            writer.write_layer(layer, {"key_spectrum": Array(("kv_head", "component"), np.ones((2, size)))})
        writer.commit()
    spectrum = store.trace("u")["key_spectrum"].values
    assert spectrum.shape == (2, 2, 6)
    assert np.isnan(spectrum[0, :, 4:]).all()
    assert (spectrum[1] == 1).all()
