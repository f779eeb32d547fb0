"""What a trace records of positions, against the closed forms of rotary frequencies in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

import probe
from probe.hooks.loading.positions import positions
from probe.hooks.models.huggingface import load

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}


def made(kind: str, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **fields})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


def plain(dim: int, theta: float = 10_000.0) -> np.ndarray[Any, Any]:
    return theta ** (-np.arange(0, dim, 2) / dim)


def yarn(dim: int, factor: float, length: int) -> np.ndarray[Any, Any]:
    """Peng et al. 2023, with β = 32 and 1: pairs that turn often stay, those that turn seldom are interpolated."""
    turns_at = [dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(10_000)) for turns in (32, 1)]
    low, high = max(math.floor(turns_at[0]), 0), min(math.ceil(turns_at[1]), dim - 1)
    interpolated = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    return plain(dim) * (1 - interpolated) + plain(dim) / factor * interpolated


def llama3(dim: int, factor: float, low: float, high: float, length: int) -> np.ndarray[Any, Any]:
    frequency = plain(dim)
    turns = length * frequency / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - smooth) * frequency / factor + smooth * frequency


SHORT, LONG = [1.0, 1.1, 1.2, 1.3], [2.0, 3.0, 4.0, 5.0]
KINDS: dict[str, tuple[dict[str, Any], int, np.ndarray[Any, Any], float]] = {
    "default": ({"rope_type": "default"}, 40, plain(8), 1.0),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 40, plain(8) / 4, 1.0),
    "dynamic, short": ({"rope_type": "dynamic", "factor": 2.0}, 40, plain(8), 1.0),
    "dynamic, long": (
        {"rope_type": "dynamic", "factor": 2.0},
        96,
        plain(8, 10_000 * (2 * 96 / 64 - 1) ** (8 / 6)),
        1.0,
    ),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        40,
        yarn(8, 4.0, 16),
        0.1 * math.log(4) + 1,
    ),
    "longrope, short": (
        {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 16},
        16,
        plain(8) / np.array(SHORT),
        math.sqrt(1 + math.log(4) / math.log(16)),
    ),
    "longrope, long": (
        {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 16},
        17,
        plain(8) / np.array(LONG),
        math.sqrt(1 + math.log(4) / math.log(16)),
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        40,
        llama3(8, 8.0, 1.0, 4.0, 16),
        1.0,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_rotary_frequencies_are_those_of_the_closed_form(name: str) -> None:
    parameters, num_tokens, frequencies, scaling = KINDS[name]
    model = made("llama", rope_parameters={"rope_theta": 10_000.0, **parameters})
    found = positions(model, num_tokens)
    assert {layer["kind"] for layer in found["layers"].values()} == {"rotary"}
    (table,) = found["rotary"].values()
    assert table["type"] == parameters["rope_type"]
    np.testing.assert_allclose(table["inverse_frequencies"], frequencies, rtol=2e-6)
    assert table["attention_scaling"] == pytest.approx(scaling)
    assert table["rotated_channels"] == 8
    original = parameters.get("original_max_position_embeddings")
    assert found["training_length"]["tokens"] == (original or 64)
    assert found["training_length"]["source"].startswith("original" if original else "max")


def test_the_frequencies_recorded_are_those_that_a_prompt_is_turned_by() -> None:
    model = made("llama", rope_parameters={"rope_theta": 10_000.0, "rope_type": "dynamic", "factor": 2.0})
    loaded = load(model)
    recorded = positions(model, 96)["rotary"]["rotary_emb"]["inverse_frequencies"]
    loaded.prefill(list(range(3, 50)) * 2 + [3, 4], chunk_tokens=31)
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq.numpy(), recorded, rtol=1e-6)


@pytest.mark.parametrize("name", ["dynamic, long", "longrope, long"])
@pytest.mark.parametrize("before", [0, 160])
def test_a_prompt_in_chunks_is_turned_as_in_one_forward(name: str, before: int) -> None:
    parameters = KINDS[name][0]
    model = made("llama", rope_parameters={"rope_theta": 10_000.0, **parameters})
    tokens = np.random.default_rng(0).integers(3, 61, 100)
    with torch.no_grad():
        expected = made("llama", rope_parameters={"rope_theta": 10_000.0, **parameters})(
            input_ids=torch.tensor(tokens)[None]
        ).logits[0]
        if before:
            # A longer prompt leaves its own frequencies in the module.
            model(input_ids=torch.arange(before)[None] % 61)
    loaded, got = load(model), []
    state = loaded.prefill(
        tokens[:-1].tolist(), chunk_tokens=13, on_logits=lambda _, rows: got.append(rows), whole=len(tokens)
    )
    got.append(loaded.step(state, [int(tokens[-1])]))
    torch.testing.assert_close(torch.cat(got), expected, atol=1e-5, rtol=1e-4)


def test_partial_rotation_counts_the_channels_that_turn() -> None:
    found = positions(made("gpt_neox", rotary_pct=0.5), 9)
    (table,) = found["rotary"].values()
    assert table["rotated_channels"] == 4
    np.testing.assert_allclose(table["inverse_frequencies"], plain(4), rtol=1e-6)


def test_gptj_keeps_sines_of_every_position() -> None:
    found = positions(made("gptj", n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4), 9)
    assert {layer["kind"] for layer in found["layers"].values()} == {"rotary"}
    for layer in found["layers"].values():
        np.testing.assert_allclose(
            found["rotary"][layer["table"]]["inverse_frequencies"], plain(4), rtol=1e-5, atol=1e-7
        )


def test_local_and_global_layers_turn_at_their_own_rates() -> None:
    found = positions(made("gemma3_text", head_dim=8, layer_types=["sliding_attention", "full_attention"]), 9)
    config = AutoConfig.for_model("gemma3_text").rope_parameters
    for layer, kind in (("0", "sliding_attention"), ("1", "full_attention")):
        assert found["layers"][layer] == {"kind": "rotary", "table": kind}
        np.testing.assert_allclose(
            found["rotary"][kind]["inverse_frequencies"], plain(8, config[kind]["rope_theta"]), rtol=1e-5
        )


def test_proportional_rotation_leaves_the_rest_of_the_head_alone() -> None:
    parameters = {"rope_type": "proportional", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    found = positions(made("llama", rope_parameters=parameters), 9)
    (table,) = found["rotary"].values()
    np.testing.assert_allclose(table["inverse_frequencies"], [*plain(8)[:2], 0, 0], rtol=1e-6)
    assert table["rotated_channels"] == 4


def test_layers_without_positions_are_told_one_by_one() -> None:
    found = positions(made("smollm3", num_hidden_layers=4), 9)
    assert [layer["kind"] for layer in found["layers"].values()] == ["rotary", "rotary", "rotary", "none"]


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, "learned"),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, "learned"),
        ("xglm", {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}, "sinusoidal"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "ALiBi"),
        ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, "ALiBi"),
    ],
)
def test_what_does_not_turn_is_told_apart(kind: str, fields: dict[str, Any], expected: str) -> None:
    found = positions(made(kind, **fields), 9)
    assert {layer["kind"] for layer in found["layers"].values()} == {expected}
    assert found["rotary"] == {}
    assert found["training_length"]["tokens"] == 64


def test_a_relative_bias_is_seen_in_the_calls() -> None:
    config = AutoConfig.for_model(
        "t5", vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    found = positions(AutoModelForSeq2SeqLM.from_config(config).eval(), 9)
    assert {layer["kind"] for layer in found["layers"].values()} == {"relative bias"}


def test_a_hybrid_without_positions_says_none() -> None:
    fields = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_dt_rank": 4, "mamba_d_state": 8}
    found = positions(made("jamba", **fields, use_mamba_kernels=False), 9)
    assert found["layers"] == {"1": {"kind": "none"}}


def test_a_trace_records_them() -> None:
    trace = probe.trace(made("llama"), list(range(3, 20)), statistics=["entropy"])
    recorded = trace.provenance["positions"]
    assert recorded["num_tokens"] == 17
    assert recorded["layers"]["1"]["kind"] == "rotary"
    assert recorded["training_length"] == {"tokens": 64, "source": "max_position_embeddings"}


def test_the_model_is_left_as_it_was() -> None:
    model = made("llama")
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        positions(model, 9)
        assert torch.equal(model(input_ids=tokens).logits, before)
