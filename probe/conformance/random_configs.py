"""Configurations drawn at random: heads, widths, windows, softcaps, rotations that nobody tuned anything for."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any, Final

from probe.conformance.random_model import Recipe, recipe
from probe.conformance.tiny_config import Sizes, tiny_config

_DRAWN_FROM: Final = (
    "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
    "gpt_neox", "gpt2", "olmo2", "granite", "cohere", "cohere2", "stablelm", "starcoder2", "glm4", "smollm3", "gpt_oss",
    "falcon", "falcon_new", "bloom", "mpt", "opt", "gptj", "deepseek_v3", "llama4_text", "qwen3_next", "falcon_h1",
)  # fmt: skip
"""Architectures that configurations are drawn for."""
_KINDS: Final = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_HEADS: Final = ((1, 1), (2, 1), (2, 2), (3, 1), (4, 1), (4, 2), (4, 4), (6, 2), (6, 3), (8, 2))
_WIDTHS: Final = (4, 6, 8, 12, 16, 20, 32, 60, 64, 80)


def random_recipes(count: int, seed: int, names: Sequence[str] = ()) -> Iterator[tuple[Recipe, dict[str, str]]]:
    """Yield `count` recipes and what was drawn of each; the same for the same seed."""
    draw = random.Random(seed)
    known = [name for name in _DRAWN_FROM if not names or name in names]
    for _ in range(count if known else 0):
        base = recipe(draw.choice(known))
        heads, kv_heads = draw.choice(_HEADS)
        sizes = Sizes(heads, kv_heads, draw.choice(_WIDTHS), draw.choice((1, 2, 3)), draw.choice((1, 2, 5, 16, 31, 64)))
        fields = {**base.fields, **_fields(draw, base, sizes)}
        # A variant's own fields hold for the sizes that it was written with.
        fields = {name: value for name, value in fields.items() if name not in ("head_dim", "num_key_value_heads")}
        drawn = {**{name: str(value) for name, value in vars(sizes).items()}, **_words(fields)}
        yield dataclasses.replace(base, sizes=sizes, fields=fields), drawn


def _fields(draw: random.Random, base: Recipe, sizes: Sizes) -> dict[str, Any]:
    default = tiny_config(base.model_type, base.sizes, base.fields)
    fields: dict[str, Any] = {}
    if hasattr(default, "attn_logit_softcapping"):
        fields["attn_logit_softcapping"] = draw.choice((None, 0.5, 2.0, 50.0))
    for name in ("attention_bias", "qkv_bias", "qk_layernorm", "use_parallel_residual", "parallel_attn"):
        if isinstance(getattr(default, name, None), bool):
            fields[name] = draw.random() < 0.5
    if hasattr(default, "use_sliding_window"):
        fields["use_sliding_window"] = draw.random() < 0.7
        fields["sliding_window"] = sizes.window
    if base.model_type == "mistral" and draw.random() < 0.3:
        fields["sliding_window"] = None
    if hasattr(default, "attention_chunk_size"):
        fields["attention_chunk_size"] = draw.choice((3, 8, 16))
    rope = getattr(default, "rope_parameters", None)
    if isinstance(rope, dict) and "rope_theta" in rope and rope.get("rope_type", "default") == "default":
        if "partial_rotary_factor" in rope or hasattr(default, "partial_rotary_factor"):
            share = draw.choice((0.25, 0.5, 1.0))
            rope = {**rope, "partial_rotary_factor": share if int(sizes.head_dim * share) % 2 == 0 else 1.0}
        width = int(sizes.head_dim * rope.get("partial_rotary_factor", 1.0))
        # Phi-3's configuration takes no other.
        kinds = ("default", "longrope") if base.model_type == "phi3" else _KINDS
        fields["rope_parameters"] = {**rope, **_rotation(draw, width, kinds)}
    return fields


def _rotation(draw: random.Random, width: int, kinds: Sequence[str]) -> dict[str, Any]:
    kind = draw.choice(kinds)
    found: dict[str, Any] = {"rope_type": kind, "rope_theta": draw.choice((100.0, 10_000.0, 1e6))}
    if kind != "default":
        found["factor"] = draw.choice((2.0, 4.0, 8.0))
    if kind in ("yarn", "llama3", "longrope"):
        found["original_max_position_embeddings"] = draw.choice((16, 64))
    if kind == "llama3":
        found |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            found[name] = [round(draw.uniform(1, 4), 2) for _ in range(width // 2)]
    return found


def _words(fields: dict[str, Any]) -> dict[str, str]:
    rope = fields.get("rope_parameters")
    words = {name: str(value) for name, value in fields.items() if not isinstance(value, dict | list)}
    return words | ({"rope": str(rope["rope_type"])} if isinstance(rope, dict) and "rope_type" in rope else {})
