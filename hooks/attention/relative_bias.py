"""A learned bias by distance (T5's) as a table of a few hundred entries, in the place of a matrix of n × n."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.errors import NotReproducible
from probe.hooks.attention.interface import own_attention

_MATRIX_CELLS = 1 << 24
# heads × queries × keys up to which the model's own matrix of biases is made, in one piece and bit by bit the same.

_COMPUTES = ["query_length", "key_length", "device", "past_seen_tokens"]


@dataclass(frozen=True, eq=False)
class relative_bias:
    """What a module would have added to the logits of its queries and keys."""

    table: Float[Tensor, "head distance"]
    """By query position minus key position, from `start` on; distances beyond an end have the end's."""
    start: int
    """Distance of the first entry."""
    num_past: int
    """Position of the first query; keys begin at position 0."""
    num_queries: int
    """Queries of the forward."""
    num_keys: int
    """Keys of the forward."""

    def rows(self, first: int, stop: int) -> Float[Tensor, "1 head query key"]:
        """The biases of some of the queries, as the model makes them."""
        device = self.table.device
        distance = (torch.arange(first, stop, device=device) + self.num_past)[:, None] - torch.arange(
            self.num_keys, device=device
        )
        return self.table[:, (distance - self.start).clamp_(0, self.table.shape[1] - 1)][None]


@contextmanager
def biases_as_tables(decoder: nn.Module) -> Iterator[None]:
    """Within the block modules of T5's kind hand their attention a `relative_bias`; `attend_with` resolves it."""
    with ExitStack() as stack:
        for module in decoder.modules():
            own = getattr(module, "compute_bias", None)
            if own is None or not isinstance(getattr(module, "relative_attention_bias", None), nn.Embedding):
                continue
            if list(inspect.signature(own).parameters) == _COMPUTES and "compute_bias" not in vars(module):
                module.compute_bias = partial(_table, module, own)  # type: ignore[assignment]
                stack.callback(delattr, module, "compute_bias")
        yield


def _table(
    module: Any, own: Callable[..., Tensor], query_length: int, key_length: int, device: Any = None,
    past_seen_tokens: int = 0,
) -> relative_bias:  # fmt: skip
    reach = int(module.relative_attention_max_distance)
    # One query in the middle of keys shows every distance on both sides.
    row = own(1, 8 * reach + 1, device=device, past_seen_tokens=4 * reach)[0, :, 0].flip(-1)
    table = row[:, 3 * reach : 5 * reach + 1]
    beyond = torch.cat([row[:, : 3 * reach] - table[:, :1], row[:, 5 * reach + 1 :] - table[:, -1:]], 1)
    if bool((beyond != 0).any()):
        raise NotReproducible(f"{type(module).__name__}: its relative bias goes on changing beyond distance {reach}")
    return relative_bias(table, -reach, int(past_seen_tokens), query_length, key_length)


def attend_with(
    own: own_attention, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    options: dict[str, Any], *, causal: bool,
) -> tuple[Any, Any]:  # fmt: skip
    """Run the model's own attention; where it has a `relative_bias`, over as many queries at a time as fit.

    A prompt so long that its matrix of biases would not be small goes through in rows of it, so that memory grows with
    the length and not with its square. Each row is what the model's own attention makes of it, to rounding.
    """
    bias = options.get("position_bias")
    if not isinstance(bias, relative_bias):
        return own(module, query, key, value, mask, **options)  # type: ignore[no-any-return]
    step = max(16, _MATRIX_CELLS // (query.shape[1] * key.shape[2]))
    # Without a mask only SDPA knows by itself which keys are hidden.
    if step >= query.shape[2] or (causal and mask is None and not own.is_sdpa):
        whole = bias.rows(0, query.shape[2])
        return own(module, query, key, value, mask, **{**options, "position_bias": whole})  # type: ignore[no-any-return]
    parts = []
    for first in range(0, query.shape[2], step):
        stop = min(first + step, query.shape[2])
        shown = None if mask is None else mask[:, :, first:stop] if mask.shape[2] > 1 else mask
        if causal and mask is None:
            position = torch.arange(first, stop, device=query.device)[:, None] + bias.num_past
            shown = (position >= torch.arange(key.shape[2], device=query.device))[None, None]
        rows = {**options, "position_bias": bias.rows(first, stop)}
        parts.append(own(module, query[:, :, first:stop], key, value, shown, **rows))
    weights = None if parts[0][1] is None else torch.cat([part[1] for part in parts], 2)
    return torch.cat([part[0] for part in parts], 1), weights
