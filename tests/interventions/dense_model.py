"""Tiny models of which attention is computed again, densely and in float64, as an intervention's definition says."""

from __future__ import annotations

import copy
import functools
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
    model = Qwen3ForCausalLM(config).eval()
    # As new, its keys would all have the same norm.
    for layer in model.model.layers:
        torch.nn.init.uniform_(layer.self_attn.k_norm.weight, 0.5, 1.5)
    return model


def gpt2() -> PreTrainedModel:
    """Learned positions, no groups, nothing that turns."""
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=3, n_positions=256, initializer_range=0.15,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


# Made once: that an intervention leaves them bit-identical is what is tested of each.
MODELS = {"llama": functools.cache(llama), "qwen3": functools.cache(qwen3), "gpt2": functools.cache(gpt2)}


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


def chosen_logits(asked: Any, layer: int, changed: Tensor, logits: Tensor) -> Tensor:
    """Take changed logits [head query key] where the intervention's layers, heads and queries say that it acts."""
    if asked.layers is not None and layer not in asked.layers:
        return logits
    head, position = torch.arange(len(logits)), torch.arange(logits.shape[1])
    heads, rows = torch.ones(len(head), dtype=torch.bool), torch.ones(len(position), dtype=torch.bool)
    if asked.heads is not None:
        heads = torch.tensor([(layer, int(h)) in asked.heads for h in head])
    if asked.queries is not None:
        rows = (position >= asked.queries[0]) & (position < asked.queries[1])
    return torch.where(heads[:, None, None] & rows[:, None], changed, logits)


def rotated_anew(
    asked: Any,
    model: PreTrainedModel,
    angle: Callable[[Tensor, Tensor], Tensor],
    larger: Callable[[int], float] = lambda length: 1.0,
) -> Definition:
    """Attention of queries and keys [head token channel] turned by `angle(position, frequency)` in their own's place.

    Both are `larger(length)` times as long.
    """

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        radians = angle(torch.arange(query.shape[1], dtype=torch.float64), inverse_frequencies(model))
        logits = query @ key.transpose(1, 2) * scale
        anew = [turned(unturned(model, each), radians) * larger(query.shape[1]) for each in (query, key)]
        changed = anew[0] @ anew[1].transpose(1, 2) * scale
        return causal(chosen_logits(asked, layer, changed, logits)).softmax(-1) @ value

    return attend
