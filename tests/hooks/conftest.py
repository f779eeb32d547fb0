"""Tiny random models of many architectures, and attention computed densely from a call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from probe.kernels.call import Call

VOCABULARY = 61
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MIXED = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 4}),
    "llama-gqa": ("llama", {}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "qwen3-sliding-full": ("qwen3", {**_MIXED, "head_dim": 8, "use_sliding_window": True}),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "gemma3": ("gemma3_text", {**_MIXED, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma2-softcap": ("gemma2", {"sliding_window": 7, "head_dim": 8, "attn_logit_softcapping": 2.0}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "gpt-neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gpt-oss-sinks": ("gpt_oss", {**_MIXED, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "phi3": ("phi3", {"sliding_window": 7}),
    "olmo2": ("olmo2", {}),
    "deepseek-v3-value-width": (
        "deepseek_v3",
        {
            "num_key_value_heads": 4,
            "first_k_dense_replace": 2,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 10,
        },
    ),
}


def make(kind: str, attention: str | None = None, **changes: Any) -> PreTrainedModel:
    """A random model of an architecture with its weights drawn from seed 0, and biases and sinks that are not 0."""
    model_type, fields = ARCHITECTURES.get(kind, (kind, {}))
    config = AutoConfig.for_model(model_type, **{**_SIZES, **fields, **changes})
    torch.manual_seed(0)
    if kind == "gemma2-softcap":
        # transformers 5.17 gives it SDPA by default, which takes the softcap and does not apply it.
        attention = attention or "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sinks" in name or name.endswith("bias"):
                parameter.normal_()
    return model.eval()


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random token ids, special ones left out."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def probabilities(call: Call) -> Tensor:
    """The attention of one call, dense and in float64, from the words of `Call` alone."""
    group = call.num_heads // call.num_kv_heads
    key = call.key.double().repeat_interleave(group, dim=0)
    logits = torch.einsum("hqc,hkc->hqk", call.query.double(), key) * call.scale
    if call.softcap is not None:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    if call.alibi_slope is not None:
        query, key = (torch.arange(num) for num in (call.num_queries, call.num_keys))
        distance = query[:, None] + call.query_start - key - call.key_start
        logits = logits - call.alibi_slope.double()[:, None, None] * distance.abs()
    for i in range(call.num_queries):
        for j in range(call.num_keys):
            distance = (call.query_start + i) - (call.key_start + j)
            outside = call.window is not None and distance >= call.window
            own = call.query_start + i - call.key_start
            apart = call.document is not None and bool(call.document[own] != call.document[j])
            if (call.causal and distance < 0) or outside or apart:
                logits[:, i, j] = -torch.inf
    if call.sink_logit is not None:
        sink = call.sink_logit.double()[:, None, None].expand(-1, call.num_queries, 1)
        logits = torch.cat([logits, sink], dim=-1)
    return logits.softmax(dim=-1)[..., : call.num_keys]


class Attention:
    """Collects calls into whole attention matrices, one a layer and sample, and remembers each row's phase."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Call]] = []

    def __call__(self, sample: int, call: Call) -> None:
        self.calls.append((sample, call))

    def matrices(self, num_tokens: int) -> dict[tuple[int, int], Tensor]:
        """By (layer, sample): `head query key`, NaN in rows that no call covered."""
        found: dict[tuple[int, int], Tensor] = {}
        for sample, call in self.calls:
            at = (call.layer, sample)
            if at not in found:
                found[at] = torch.full((call.num_heads, num_tokens, num_tokens), torch.nan, dtype=torch.float64)
            rows = slice(call.query_start, call.query_start + call.num_queries)
            assert found[at][:, rows].isnan().all(), "two calls cover the same rows"
            found[at][:, rows] = 0
            found[at][:, rows, call.key_start : call.key_start + call.num_keys] = probabilities(call)
        return found

    def phases(self) -> dict[int, list[str]]:
        """By layer, the phase of every query in order (of one sample)."""
        found: dict[int, list[str]] = defaultdict(list)
        for _, call in self.calls:
            found[call.layer] += [call.phase] * call.num_queries
        return found


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", name="make")
def _make() -> Callable[..., PreTrainedModel]:
    return make


@pytest.fixture(scope="session", name="tokens")
def _tokens() -> Callable[..., Tensor]:
    return tokens


@pytest.fixture(name="attention")
def _attention() -> Attention:
    return Attention()
