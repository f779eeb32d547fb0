"""Small random models, each as transformers, TransformerLens and nnsight have it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen3Config,
)

import probe

VOCABULARY = 97
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2, "head_dim": 16}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**_SIZES, num_key_value_heads=2),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=512, pad_token_id=0),
    "gpt_neox": GPTNeoXConfig(**_SIZES, rotary_pct=0.5),
    "qwen3": Qwen3Config(**_GROUPED),
    "gemma2": Gemma2Config(
        **_GROUPED, sliding_window=24, attn_logit_softcapping=5.0, query_pre_attn_scalar=20, tie_word_embeddings=True
    ),
    "gemma3": Gemma3TextConfig(
        **_GROUPED, sliding_window=24, layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=True
    ),
}


def made(family: str) -> PreTrainedModel:
    """A model of this family, the same weights every time."""
    torch.manual_seed(11)
    config = copy.deepcopy(CONFIGS[family])
    eager = {"attn_implementation": "eager"} if family == "gemma2" else {}
    model = AutoModelForCausalLM.from_config(config, **eager)
    with torch.no_grad():
        # Random weights attend evenly; larger ones look somewhere.
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj", "c_attn.weight", "query_key_value.weight")):
                parameter.mul_(8)
    return model.eval().requires_grad_(False)


def bridged(model: PreTrainedModel, tokenizer: Any = None) -> Any:
    """A TransformerBridge that stands in `model`."""
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config, tokenizer=tokenizer)
    return bridge.eval()


def seen_by_nnsight(model: PreTrainedModel) -> Any:
    """Nnsight's object around `model`, one that could go to NDIF."""
    nnsight = pytest.importorskip("nnsight")
    tokenizer = probe.load("needle").tokenizer
    return nnsight.TransformersModel(model, task="text-generation", tokenizer=tokenizer)


def rehearsed_on_ndif(model: PreTrainedModel) -> Any:
    """What runs on NDIF, run here."""
    from probe.hooks.models.remote_model import RemoteModel

    return RemoteModel(seen_by_nnsight(model), remote=False)


WAYS: dict[str, Callable[[PreTrainedModel], Any]] = {
    "transformer_lens": bridged,
    "nnsight": seen_by_nnsight,
    "rehearsed_on_ndif": rehearsed_on_ndif,
}


@pytest.fixture(autouse=True)
def _warnings_of_other_libraries() -> Any:
    """Those that importing and wrapping raise, which are not this package's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(transformer_lens|nnsight|beartype|websocket).*")
        yield
