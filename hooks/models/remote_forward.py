"""One forward of a model that nnsight holds, here or on NDIF, and what its attention was given."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import NotReproducible
from probe.hooks.attention.interface import name_of


@dataclass(frozen=True, eq=False)
class layer_inputs:
    """What one layer's attention function was given for the new tokens of one sequence, and some of what it gave."""

    query: Float[Tensor, "head query channel"]
    """Queries after rotation."""
    key: Float[Tensor, "kv_head query channel"]
    """Keys of the same tokens."""
    value: Float[Tensor, "kv_head query value_channel"]
    """Values of the same tokens."""
    options: dict[str, Any]
    """The numbers and the learned sink that the function was given by name."""
    rows: list[int]
    """Queries, counted from the first new one, whose output came along."""
    output: Float[Tensor, "row head value_channel"]
    """The heads' outputs there."""
    residual: Float[Tensor, "query channel"] | None
    """The layer's own output, where it was asked for."""


def attention_paths(model: PreTrainedModel) -> dict[int, str]:
    """The path of each layer's attention module; `NotReproducible` where none calls the attention interface."""
    found = {}
    for path, module in model.named_modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and _calls_the_interface(type(module)):
            found[layer] = path
    if not found:
        raise NotReproducible(
            f"{name_of(model)}: no module of it calls transformers' attention interface, so nnsight cannot show what "
            "its attention is given"
        )
    return found


def rows_of(num_queries: int) -> list[int]:
    """The queries that a call is verified at."""
    return sorted({0, num_queries // 3, 2 * num_queries // 3, num_queries - 1})


@torch.no_grad()
def remote_forward(
    envoy: Any, tokens: Tensor, first: int, paths: dict[int, str], *, remote: bool | str, residuals: bool, logits: bool
) -> tuple[dict[int, layer_inputs], Float[Tensor, "token vocabulary"]]:
    """Put a whole sequence through, and return what concerns its tokens from `first` on, and their logits.

    Without `logits` the last token's alone. With `remote` the sequence goes to NDIF (`"local"`: nnsight's rehearsal,
    which packs and unpacks the request on this machine), and nothing is computed here.
    """
    # The block below is what nnsight sends, so it uses nothing but names that stand beside it.
    numbers = ("scaling", "sliding_window", "softcap", "s_aux", "is_causal", "position_bias")
    rows = [first + row for row in rows_of(len(tokens) - first)]
    attentions = [envoy.get(path) for path in paths.values()]
    layers = [envoy.get(path.rpartition(".")[0]) for path in paths.values()]
    keep = first if logits else len(tokens) - 1
    new: Any = list
    with envoy.trace(tokens[None], use_cache=False, remote=remote):
        taken = new().save()
        for attention, layer in zip(attentions, layers, strict=True):
            given = attention.source.attention_interface_1.inputs
            query, key, value = given[0][1:4]
            said = {name: given[1][name] for name in numbers if given[1].get(name) is not None}
            output = attention.source.attention_interface_1.output[0][0, rows].cpu()
            hidden = None
            if residuals:
                hidden = layer.output
                hidden = (hidden[0] if isinstance(hidden, tuple) else hidden)[0, first:].cpu()
            of_new = [each[0, :, first:].cpu() for each in (query, key, value)]
            taken.append((of_new, said, output, hidden))
        scores = envoy.output.logits[0, keep:].cpu().save()
    here = [row - first for row in rows]
    inputs = {
        layer: layer_inputs(query, key, value, said, here, output, hidden)
        for layer, ((query, key, value), said, output, hidden) in zip(paths, taken, strict=True)
    }
    return inputs, scores


def attention_shapes(envoy: Any, paths: dict[int, str]) -> dict[int, tuple[int, int, int, int]]:
    """Heads, key-value heads, width of keys and of values, by layer; found without weights and without a request."""
    attentions = [envoy.get(path) for path in paths.values()]
    new: Any = list
    with envoy.scan(torch.zeros(1, 2, dtype=torch.long), use_cache=False):
        shapes = new().save()
        for attention in attentions:
            query, key, value = attention.source.attention_interface_1.inputs[0][1:4]
            shapes.append((query.shape[1], key.shape[1], key.shape[-1], value.shape[-1]))
    return {layer: (int(h), int(kv), int(k), int(v)) for layer, (h, kv, k, v) in zip(paths, shapes, strict=True)}


def _calls_the_interface(kind: type[nn.Module]) -> bool:
    try:
        source = inspect.getsource(inspect.unwrap(kind.forward))
    except (OSError, TypeError):
        return False
    return re.search(r"\battention_interface\(", source) is not None
