"""Configurations of a few thousand weights, of any architecture, by the names that configurations give their sizes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from probe.strict_yaml import parse

VOCABULARY = 61
"""Token ids of every tiny model."""
MAX_TOKENS = 512
"""Positions of every tiny model."""


@dataclass(frozen=True)
class Sizes:
    """What is chosen of a tiny model, whatever its architecture calls it."""

    heads: int = 4
    """Query heads."""
    kv_heads: int = 2
    """Key-value heads."""
    head_dim: int = 8
    """Width of a head."""
    layers: int = 2
    """Layers at least: one of each kind is made where there are more kinds."""
    window: int = 7
    """Positions that a query of a sliding layer sees."""


USUAL = Sizes()
"""The sizes of whatever chooses none."""
_TABLE = parse(Path(__file__).with_name("sizes.yaml").read_bytes(), "sizes.yaml").value
_NAMES: dict[str, list[str]] = _TABLE["names"]
_FIXED = {name: int(value) for value, names in _TABLE["fixed"].items() for name in names}
_KINDS = _TABLE["kinds"]
_NAMED = {name: role for role, names in _NAMES.items() for name in names}


def tiny_config(model_type: str, sizes: Sizes = USUAL, fields: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """Return a configuration of `model_type` with these sizes; `fields` are set as they are.

    Whatever else the architecture's defaults say (rotation, norms, softcap, sinks, which layers slide) stays.
    """
    kind = CONFIG_MAPPING[model_type]
    return kind(**_shrunk(kind(), sizes, dict(fields or {})))


def _shrunk(default: PretrainedConfig, sizes: Sizes, fields: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in vars(default).items() if not name.startswith("_")}
    for left_out in ("transformers_version", "architectures", "dtype", "torch_dtype"):
        given.pop(left_out, None)
    lists = [given[name] for name in _KINDS if isinstance(given.get(name), list | tuple)]
    layers = max([sizes.layers, *(len(_distinct(each)) for each in lists)])
    fields = {**({"head_dim": _FIXED["qk_rope_head_dim"]} if "qk_rope_head_dim" in given else {}), **fields}
    sizes = Sizes(sizes.heads, sizes.heads if "kv_lora_rank" in given else sizes.kv_heads, sizes.head_dim, layers,
                  sizes.window)  # fmt: skip
    num_layers = next((given[name] for name in _NAMES["layers"] if isinstance(given.get(name), int)), -1)
    shrunk: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, PretrainedConfig):
            shrunk[name] = type(value)(**_shrunk(value, sizes, {}))
        elif isinstance(value, list | tuple) and value and (name in _KINDS or len(value) == num_layers):
            kinds = _distinct(value)
            shrunk[name] = [kinds[index % len(kinds)] for index in range(layers)]
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            shrunk[name] = copy.deepcopy(value)
        elif value is None and _NAMED.get(name) == "kv_heads":
            shrunk[name] = sizes.kv_heads
        elif isinstance(value, int | float) and not isinstance(value, bool):
            shrunk.update(_number(name, value, sizes))
    return {**shrunk, **fields}


def _number(name: str, value: float, sizes: Sizes) -> dict[str, Any]:
    width = sizes.heads * sizes.head_dim
    by_role = {
        **vars(sizes), "width": width, "inner": 48, "experts": min(int(value), 4), "active": min(int(value), 2),
        "one": min(int(value), 1), "positions": MAX_TOKENS, "vocabulary": VOCABULARY,
    }  # fmt: skip
    if name.endswith("token_id") or name.endswith("token_index"):
        spare = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return {name: spare.get(name, VOCABULARY - 1)} if value >= VOCABULARY else {}
    if name in _NAMED:
        return {name: by_role[_NAMED[name]]}
    if name == "query_pre_attn_scalar":
        return {name: sizes.head_dim}
    if name == "rotary_dim":
        return {name: sizes.head_dim // 2}
    if name in ("initializer_range", "init_std"):
        # So that logits are as sharp at every width: enough for an error to show, and no more than float32 bears.
        return {name: 0.2 * (32 / width) ** 0.5}
    return {name: _FIXED[name]} if name in _FIXED and value else {}


def _distinct(values: Any) -> list[Any]:
    return list({str(value): value for value in values}.values())
