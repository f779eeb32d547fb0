"""Tiny models of which attention is computed again, densely and in float64, as an intervention's definition says."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

VOCABULARY = 61
TRAINED = 64
"""Tokens that the models' configurations say they were trained on."""

# layer, query [head query channel], key and value [head key channel], scale -> what the heads put out
Definition = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]

_counter = itertools.count()


def llama() -> PreTrainedModel:
    """Grouped heads of 16 channels."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=TRAINED, initializer_range=0.15,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def qwen3() -> PreTrainedModel:
    """A head width of 60, normalised queries and keys."""
    torch.manual_seed(2)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=60, max_position_embeddings=TRAINED, initializer_range=0.15,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def gpt2() -> PreTrainedModel:
    """Learned positions, no groups, nothing that turns."""
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=3, n_positions=256, initializer_range=0.15,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


MODELS = {"llama": llama, "qwen3": qwen3, "gpt2": gpt2}


def tokens(length: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def dense_logits(model: PreTrainedModel, ids: list[int], definition: Definition) -> Tensor:
    """Logits [token vocabulary] in float64 of one whole prompt, every layer's attention being `definition`."""
    exact = copy.deepcopy(model).double()
    name = f"dense_for_tests_{next(_counter)}"

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        group = query.shape[1] // key.shape[1]
        scale = options.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
        key, value = (each[0].repeat_interleave(group, 0) for each in (key, value))
        output = definition(module.layer_idx, query[0], key, value, scale)
        assert output.dtype == torch.float64
        return output.transpose(0, 1)[None], None

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    exact.set_attn_implementation(name)
    return exact(torch.tensor([ids])).logits[0]


def causal(logits: Tensor) -> Tensor:
    """Hide later keys."""
    query, key = logits.shape[-2:]
    return logits.masked_fill(torch.ones(query, key, dtype=torch.bool).triu(1), -torch.inf)


def plain(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention, as nobody has changed it."""
    return causal(query @ key.transpose(1, 2) * scale).softmax(-1) @ value


def inverse_frequencies(model: PreTrainedModel) -> Tensor:
    """Radians a token of each pair of channels, from the configuration alone."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    base = config.rope_parameters["rope_theta"]
    return base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)


def turned(vectors: Tensor, angle: Tensor) -> Tensor:
    """Turn [head token channel], the first half of the channels paired with the second, by angles [token pair]."""
    a, b = vectors.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def unturned(model: PreTrainedModel, vectors: Tensor) -> Tensor:
    """Return queries or keys of a whole prompt as they were before their positions turned them."""
    position = torch.arange(vectors.shape[1], dtype=torch.float64)
    return turned(vectors, -position[:, None] * inverse_frequencies(model))
