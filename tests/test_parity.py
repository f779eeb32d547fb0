"""Every core statistic of a traced model agrees with float64, over the model's own eager attention and nothing of ours.

The expected values come from a float64 copy of the model with eager attention: its attention weights, hidden states,
logits, and cached keys and values, reduced with plain NumPy here. The tested values come from the float32 model with
the attention that it was loaded with, through `probe.trace`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

import probe
from probe.sample import Sample, Span

VOCABULARY = 61
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "head_dim": 12,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**COMMON, num_key_value_heads=4),
    "llama-gqa": lambda: LlamaConfig(**COMMON, num_key_value_heads=2),
    "llama-mqa": lambda: LlamaConfig(**COMMON, num_key_value_heads=1),
    "qwen3-sliding-full": lambda: Qwen3Config(
        **COMMON,
        num_key_value_heads=2,
        sliding_window=7,
        use_sliding_window=True,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "mistral-window": lambda: MistralConfig(**COMMON, num_key_value_heads=2, sliding_window=20),
    "gemma3": lambda: Gemma3TextConfig(
        **COMMON,
        num_key_value_heads=2,
        sliding_window=16,
        query_pre_attn_scalar=12,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gpt2": lambda: GPT2Config(**GPT, n_embd=48, n_layer=2, n_head=4, n_positions=2048),
    "gpt-neox": lambda: GPTNeoXConfig(
        **GPT,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rotary_pct=0.25,
    ),
}
LENGTHS = (1, 2, 15, 16, 17, 127, 128, 129, 1000)
STATISTICS = [
    "log_sum_exp",
    "entropy",
    "max_probability",
    "max_logit",
    "sink_mass",
    "recent_mass",
    "offset_mass",
    "match_mass",
    {"match_mass": {"by": "induction"}},
    "mean_distance",
    "distance_histogram",
    "received_mass",
    {"received_mass": {"horizon": 64}},
    "attention_map",
    "span_mass",
    "top_keys",
    "output_norm_share",
    "key_norm",
    "value_norm",
    "residual_norm",
    "residual_max",
    "residual_median",
    "loss",
]


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(sum(map(ord, request.param)))
    built: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[request.param](), attn_implementation="sdpa")
    return built.eval()


def spans_of(length: int) -> tuple[Span, ...]:
    return (Span("first", 0, min(3, length)), Span("middle", length // 3, max(length // 3 + 1, length // 2)))


class Expected:
    """What float64 eager attention says of one prompt; arrays of one layer at a time."""

    def __init__(self, model: PreTrainedModel, tokens: list[int]) -> None:
        exact = copy.deepcopy(model).double()
        exact.set_attn_implementation("eager")
        cache = DynamicCache()
        with torch.no_grad():
            out = exact(
                torch.tensor([tokens]), past_key_values=cache, output_attentions=True, output_hidden_states=True
            )
        self.tokens = np.array(tokens)
        self.attention = [a[0].numpy() for a in out.attentions]
        # hidden_states holds each layer's input; the last is behind the final norm, so only the layers before it count.
        self.hidden = [h[0].numpy() for h in out.hidden_states[1:-1]]
        self.logits = out.logits[0].numpy()
        self.key = [layer.keys[0].numpy() for layer in cache.layers]
        self.value = [layer.values[0].numpy() for layer in cache.layers]

    def of_layer(self, layer: int, spans: tuple[Span, ...]) -> dict[str, np.ndarray[Any, Any]]:
        p = self.attention[layer]
        heads, n, _ = p.shape
        i, j = np.arange(n)[:, None], np.arange(n)[None, :]
        distance = i - j
        log_p = np.log(p, where=p > 0, out=np.zeros_like(p))
        previous = np.concatenate([[-1], self.tokens[:-1]])
        value = self.value[layer].repeat(heads // len(self.value[layer]), 0)
        key = self.key[layer]
        edges = [(0, 1), *((1 << b, 2 << b) for b in range(30) if 1 << b < n)]
        size = 1
        while size * 256 < n:
            size *= 2
        cells = -(-n // size)
        padded = np.zeros((heads, cells * size, cells * size))
        padded[:, :n, :n] = p
        blocks = padded.reshape(heads, cells, size, cells, size)
        rows_in_block = np.minimum(size, n - np.arange(cells) * size)
        row = p[:, -1]
        whole = np.einsum("hj,hjd->hd", row, value)
        return {
            "entropy": -(p * log_p).sum(-1),
            "max_probability": p.max(-1),
            "sink_mass": p[..., :4].sum(-1),
            "recent_mass": np.where((distance >= 0) & (distance < 64), p, 0).sum(-1),
            "offset_mass": np.stack([np.trace(p, -d, 1, 2) if d < n else np.zeros(heads) for d in range(128)], -1),
            "match_mass": np.where((self.tokens[j] == self.tokens[i]) & (distance > 0), p, 0).sum(-1),
            "match_mass_by_induction": np.where(previous[j] == self.tokens[i], p, 0).sum(-1),
            "mean_distance": (p * distance).sum(-1),
            "distance_histogram": np.stack(
                [np.where((distance >= low) & (distance < high), p, 0).sum((1, 2)) for low, high in edges], -1
            ),
            "received_mass": p.sum(1),
            "received_mass_horizon_64": p[:, :64].sum(1),
            "attention_map": blocks.sum((2, 4)) / rows_in_block[None, :, None],
            "attention_map_max": blocks.max((2, 4)),
            "span_mass": np.stack([row[:, s.start : s.stop].sum(-1) for s in spans], -1)[:, None],
            "output_norm_share": np.stack(
                [
                    np.linalg.norm(
                        np.einsum("hj,hjd->hd", row[:, s.start : s.stop], value[:, s.start : s.stop]), axis=-1
                    )
                    / np.linalg.norm(whole, axis=-1)
                    for s in spans
                ],
                -1,
            )[:, None],
            "top_keys_probability": -np.sort(-np.pad(row, ((0, 0), (0, 8))), -1)[:, None, :8],
            "key_norm": np.linalg.norm(key, axis=-1),
            "value_norm": np.linalg.norm(value[:: heads // len(key)], axis=-1),
        }


def close(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], name: str) -> None:
    assert actual.shape == expected.shape, name
    error = np.abs(actual.astype(float) - expected) / np.maximum(1, np.abs(expected))
    assert np.nanmax(error, initial=0) <= 1e-5, f"{name}: off by {np.nanmax(error):.1e}"
    assert (np.isnan(actual) == np.isnan(expected)).all(), name


@pytest.mark.parametrize("length", LENGTHS)
def test_every_core_statistic_agrees_with_float64(model: PreTrainedModel, length: int) -> None:
    generator = np.random.default_rng(length)
    tokens = generator.integers(3, VOCABULARY, length).tolist()
    spans = spans_of(length)
    trace = probe.trace(probe.load(model), Sample("parity", tuple(tokens), spans), statistics=STATISTICS)
    exact = Expected(model, tokens)
    for layer in range(2):
        for name, expected in exact.of_layer(layer, spans).items():
            actual = trace[name].isel(layer=layer).values
            if name == "distance_histogram":
                # Bins that a window leaves empty in both are not stored where no layer reaches them.
                expected = expected[:, : actual.shape[-1]]
                actual = np.nan_to_num(actual)
            close(actual, expected, f"{name} in layer {layer}")
        p = exact.attention[layer]
        argmax = trace["argmax_key"].isel(layer=layer).values
        picked = np.take_along_axis(p, argmax[..., None].astype(int), -1)[..., 0]
        close(picked, p.max(-1), "the probability of argmax_key")
        logit = trace["max_logit"].isel(layer=layer).values - trace["log_sum_exp"].isel(layer=layer).values
        close(np.exp(logit), p.max(-1), "exp(max_logit - log_sum_exp)")
    for layer, hidden in enumerate(exact.hidden):
        close(trace["residual_norm"].values[layer], np.linalg.norm(hidden, axis=-1), "residual_norm")
        close(trace["residual_max"].values[layer], np.abs(hidden).max(-1), "residual_max")
        close(trace["residual_median"].values[layer], np.median(np.abs(hidden), -1), "residual_median")
    logits = exact.logits
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    loss = log_sum[:-1] - logits[np.arange(length - 1), tokens[1:]]
    if length > 1:
        close(trace["loss"].values, np.concatenate([[np.nan], loss]), "loss")


@pytest.mark.parametrize("length", [15, 300])
def test_chunks_of_a_prompt_change_nothing(model: PreTrainedModel, length: int) -> None:
    tokens = np.random.default_rng(length).integers(3, VOCABULARY, length).tolist()
    loaded = probe.load(model)
    whole = probe.trace(loaded, tokens, statistics=STATISTICS)
    chunked = probe.trace(loaded, tokens, statistics=STATISTICS, chunk_tokens=7)
    for name in whole.dataset.data_vars:
        if whole[str(name)].dtype.kind == "f":
            close(chunked[str(name)].values, whole[str(name)].values.astype(float), str(name))
