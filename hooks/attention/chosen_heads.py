"""Heads that are chosen by layer, phase and query: which entries of a layer's heads an intervention acts on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.layers import attention_parts
from probe.hooks.attention.tap import site
from probe.hooks.sequence.forward_facts import Part

HeadPhase = Literal["both", "prefill", "decode"]
Heads = tuple[tuple[int, int], ...]


def as_heads(who: str, heads: Any) -> Heads:
    """Return pairs of layer and head, each once; raises `UsageError` naming the field for anything else."""
    try:
        return tuple(dict.fromkeys((int(layer), int(head)) for layer, head in heads))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{who}: heads are pairs of layer and head, not {heads!r}") from error


def as_queries(who: str, queries: Any) -> tuple[int, int] | None:
    """Return a half-open range of positions, None for all; raises `UsageError` naming the field for anything else."""
    if queries is None:
        return None
    try:
        first, stop = map(int, queries)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{who}: queries is a range [first, stop) of positions, not {queries!r}") from error
    if not 0 <= first < stop:
        raise UsageError(f"{who}: queries is a range [first, stop) of positions, not {queries!r}")
    return first, stop


def check_choice(who: str, name: str, value: Any, kinds: Any) -> None:
    """Raise `UsageError` naming the field where a value is none of a literal's."""
    if value not in get_args(kinds):
        raise UsageError(f"{who}: {name} is {value!r}; expected {', '.join(get_args(kinds))}")


@dataclass(frozen=True, eq=False)
class ChosenHeads:
    """Heads of one model's attention, the queries and the phase in which they are meant."""

    by_layer: Mapping[int, Bool[Tensor, "head"]]
    """Which heads of each layer; a layer of which none is meant is not there."""
    phase: HeadPhase
    """`prefill`: the prompt without its last token; `decode`: from there on."""
    queries: tuple[int, int] | None
    """Half-open range of positions in the sample; None for all."""

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        who: str,
        heads: Sequence[tuple[int, int]],
        *,
        phase: HeadPhase = "both",
        queries: tuple[int, int] | None = None,
        part: Part = "self",
    ) -> ChosenHeads:
        """Look the heads up; raises `UsageError`, naming the model's shape, for such as it does not have."""
        parts = attention_parts(model)
        if part != "self" and part not in parts:
            raise UsageError(f"{who}: {name_of(model)} has no part {part!r}; it has {', '.join(parts)}")
        shape = {layer: found.num_heads for layer, found in parts.get(part, {}).items()}
        for layer, head in heads:
            if not 0 <= head < shape.get(layer, 0):
                raise UsageError(f"{who}: {name_of(model)} has no head ({layer}, {head}); {_in_words(shape)}")
        by_layer = {
            layer: torch.tensor([(layer, head) in heads for head in range(shape[layer])])
            for layer in sorted({layer for layer, _ in heads})
        }
        return cls(by_layer, phase, queries)

    def where(self, here: site, device: torch.device) -> Bool[Tensor, "batch query head 1"]:
        """Return which of a layer's outputs are meant, on the device where they are: layers may lie on several."""
        decode = here.decode_rows()
        rows = {"both": torch.ones_like(decode), "prefill": ~decode, "decode": decode}[self.phase]
        if self.queries is not None:
            position = here.forward.query_positions()
            rows = rows & (position >= self.queries[0]) & (position < self.queries[1])
        return (rows[:, :, None] & self.by_layer[here.layer])[..., None].to(device)


def _in_words(shape: Mapping[int, int]) -> str:
    if len(set(shape.values())) == 1 and list(shape) == list(range(len(shape))):
        return f"it has {len(shape)} layers of {shape[0]} heads"
    return "it has " + ", ".join(f"{count} heads in layer {layer}" for layer, count in sorted(shape.items()))
