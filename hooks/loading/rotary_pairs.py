"""Which channels of a head turn together, layer by layer, as the model's own queries show."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import NotReproducible
from probe.hooks.attention.tap import site, tap
from probe.hooks.loading.placement import input_device
from probe.hooks.loading.positions import positions, put_through

Pairs = Int[Tensor, "rope_pair 2"]
LARGEST_ERROR, LARGEST_HALF_ERROR = 0.02, 0.2
"""How far queries may be from what turning the pairs gives, as a share of how far they turn; and in half precision,
where what a layer reads differs by the rounding of all before it. A wrong way of pairing is off by 1 and more."""

_seen: weakref.WeakKeyDictionary[PreTrainedModel, dict[int, Pairs]] = weakref.WeakKeyDictionary()


def rotary_pairs(model: PreTrainedModel) -> dict[int, Pairs]:
    """Return the pairs of channels of each attention layer that turns its queries, in the order of its frequencies.

    They are seen, not looked up: the same tokens are put through at two positions. Models pair halves (Llama) or
    neighbours (GPT-J), of all channels, or of the first or the last alone, the others not turning; the way is taken by
    which the queries turn as their layer's frequencies say. Raises `NotReproducible`, with what was found instead,
    where no layer turns, or one does so in no such way.
    """
    if model not in _seen:
        _seen[model] = _look(model)
    return _seen[model]


@dataclass(eq=False)
class _queries(tap):
    """Each layer's queries, in float64."""

    def __post_init__(self) -> None:
        self.of: dict[int, Tensor] = {}

    def change_query(self, here: site, query: Tensor) -> Tensor:
        self.of[here.layer] = query[0].detach().double().cpu()
        return query


def _look(model: PreTrainedModel) -> dict[int, Pairs]:
    name = type(model).__name__
    if input_device(model).type == "meta":
        raise NotReproducible(f"{name} runs elsewhere: how it turns its queries cannot be seen here")
    known = positions(model, 4)
    turning = {int(layer): each for layer, each in known["layers"].items() if each["kind"] == "rotary"}
    if not turning:
        kinds = sorted({str(each["kind"]) for each in known["layers"].values()}) or ["no attention"]
        raise NotReproducible(
            f"{name} has no rotary positions ({', '.join(kinds)}): what rotary pairs of channels do is asked of a "
            "model with rotary positions (RoPE)"
        )
    here, further_on = _queries(), _queries()
    put_through(model, here, further_on)
    found = {}
    for layer, facts in turning.items():
        table: dict[str, Any] | None = known["rotary"].get(facts.get("table"))
        if table is None:
            raise NotReproducible(f"{name}, layer {layer}: which table of rotary frequencies it turns by is not known")
        frequencies = torch.tensor(table["inverse_frequencies"], dtype=torch.float64)
        allowed = LARGEST_ERROR if torch.finfo(model.dtype).bits > 16 else LARGEST_HALF_ERROR
        pairs = _pairs(here.of[layer], further_on.of[layer], frequencies, allowed)
        if pairs is None:
            raise NotReproducible(
                f"{name}, layer {layer}: its queries turn neither by halves nor by neighbouring channels as its table "
                "of frequencies says; where its forward takes no positions nobody can see"
            )
        found[layer] = pairs
    return found


def _pairs(query: Tensor, further_on: Tensor, frequency: Tensor, allowed: float) -> Pairs | None:
    """Return the way of pairing that explains best how queries [head token channel] turn by one position."""
    turned = (further_on - query).norm()
    errors = [
        (float((_turn(query, pairs, frequency) - further_on).norm() / turned), pairs)
        for pairs in _ways(query.shape[-1], len(frequency))
    ]
    best = min(errors, key=lambda each: each[0], default=None)
    return best[1] if best is not None and best[0] <= allowed else None


def _ways(channels: int, num_pairs: int) -> Iterator[Pairs]:
    """Yield the ways in which models pair channels."""
    turning = 2 * num_pairs
    if turning > channels:
        return
    halves = torch.arange(turning).reshape(2, num_pairs).T
    neighbours = torch.arange(turning).reshape(num_pairs, 2)
    for first in sorted({0, channels - turning}):
        yield halves + first
        yield neighbours + first


def _turn(query: Tensor, pairs: Pairs, frequency: Tensor) -> Tensor:
    a, b = query[..., pairs[:, 0]], query[..., pairs[:, 1]]
    turned = query.clone()
    turned[..., pairs[:, 0]] = a * frequency.cos() - b * frequency.sin()
    turned[..., pairs[:, 1]] = b * frequency.cos() + a * frequency.sin()
    return turned
