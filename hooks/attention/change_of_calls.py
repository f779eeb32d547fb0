"""Interventions that are a function of calls: queries, keys, values and logits in, the same changed out."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.layers import attention_parts
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import site, tap
from probe.hooks.intervention import Intervention, standing
from probe.hooks.loading.backend import transformers_model_of
from probe.kernels.call import Call
from probe.kernels.score_change import Place, ScoreChange
from probe.kernels.scores import Scores

ChangedPhase = Literal["both", "prefill", "decode"]
Change = Callable[[site, int, Call], Call]
"""Takes where attention happens, which sample of the batch it is, and the call; returns the call as it shall be."""


@dataclass(frozen=True, kw_only=True)
class ChangeOfCalls(Intervention):
    """An intervention on a decoder's own attention, in whole or where its fields say.

    A subclass is a frozen dataclass that gives `change`; where it acts, this class sees to.
    """

    layers: Sequence[int] | None = None
    """Layers in which it acts, from 0; None for all."""
    heads: Sequence[tuple[int, int]] | None = None
    """Pairs of layer and query head, from 0, on which it acts; None for all of the layers'."""
    queries: tuple[int, int] | None = None
    """Half-open range of the query positions on which it acts; None for all."""
    phase: ChangedPhase = "both"
    """Whether it acts on the prompt (`prefill`), from the prompt's last token on (`decode`), or on both."""

    remembers: ClassVar[bool] = False
    """Whether `change` must see the calls on which it does not act, too: what it makes of those is left aside."""

    def __post_init__(self) -> None:
        who = type(self).__name__
        if self.phase not in get_args(ChangedPhase):
            raise UsageError(f"{who}: phase is {self.phase!r}; expected {', '.join(get_args(ChangedPhase))}")
        try:
            layers = None if self.layers is None else tuple(sorted({int(layer) for layer in self.layers}))
            heads = None if self.heads is None else tuple(dict.fromkeys((int(i), int(j)) for i, j in self.heads))
            queries = None if self.queries is None else tuple(map(int, self.queries))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{who}: layers are whole numbers, heads pairs of layer and head: {error}") from error
        if queries is not None and (len(queries) != 2 or not 0 <= queries[0] < queries[1]):
            raise UsageError(f"{who}: queries is a range [first, stop) of positions, not {self.queries!r}")
        if layers is not None and heads is not None:
            raise UsageError(f"{who}: layers and heads both say where it acts; give one of them")
        for name, value in (("layers", layers), ("heads", heads), ("queries", queries)):
            object.__setattr__(self, name, value)

    @abstractmethod
    def change(self, model: PreTrainedModel) -> Change:
        """Look at the model, once, and return what is done to its calls.

        Raises `UsageError` naming the field for a model to which it does not apply. What comes back returns the very
        same call where it changes nothing, and never writes to a call's tensors.
        """

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which `model`, wrapped or a bare transformers model, attends so."""
        return self._applied(transformers_model_of(model))

    @contextmanager
    def _applied(self, model: PreTrainedModel) -> Iterator[None]:
        chosen = self._chosen(model)
        with standing(self, model), self._acting(model, self.change(model), chosen):
            yield

    def _acting(
        self, model: PreTrainedModel, change: Change, chosen: dict[int, Bool[Tensor, "head"] | None]
    ) -> AbstractContextManager[None]:
        """Return the block within which calls are changed so, where the fields say."""
        return attached(model, _changing(self, change, chosen))

    def _chosen(self, model: PreTrainedModel) -> dict[int, Bool[Tensor, "head"] | None]:
        """Return the layers in which it acts, and on which of their heads where not on all."""
        shape = {layer: found.num_heads for layer, found in attention_parts(model).get("self", {}).items()}
        who, name = type(self).__name__, name_of(model)
        if not shape:
            raise UsageError(f"{who}: no layer of {name} attends; a model with attention is needed")
        for layer in self.layers or ():
            if layer not in shape:
                raise UsageError(f"{who}: {name} has no attention in layer {layer}; its layers are {sorted(shape)}")
        for layer, head in self.heads or ():
            if not 0 <= head < shape.get(layer, 0):
                raise UsageError(f"{who}: {name} has no head ({layer}, {head}); heads by layer: {shape}")
        if self.heads is None:
            return dict.fromkeys(shape if self.layers is None else self.layers)
        return {
            layer: torch.tensor([(layer, head) in self.heads for head in range(shape[layer])])
            for layer in sorted({layer for layer, _ in self.heads})
        }


class _changing(tap):
    changes_calls = True

    def __init__(self, asked: ChangeOfCalls, change: Change, chosen: dict[int, Bool[Tensor, "head"] | None]) -> None:
        self.asked, self.change, self.chosen = asked, change, chosen

    def changes_layer(self, layer: int) -> bool:
        return layer in self.chosen

    def change_call(self, here: site, sample: int, call: Call) -> Call:
        first, stop = self.asked.queries or (0, call.query_start + call.num_queries)
        if here.layer not in self.chosen:
            return call
        elsewhere = stop <= call.query_start or call.query_start + call.num_queries <= first
        if elsewhere or self.asked.phase not in ("both", call.phase):
            if self.asked.remembers:
                self.change(here, sample, call)
            return call
        changed = self.change(here, sample, call)
        heads = self.chosen[here.layer]
        inside = first <= call.query_start and call.query_start + call.num_queries <= stop
        if changed is call or (heads is None and inside):
            return changed
        if heads is None:
            heads = torch.ones(call.num_heads, dtype=torch.bool)
        if changed.value is not call.value or (changed.sink_logit is not call.sink_logit and not inside):
            raise UsageError(
                f"{type(self.asked).__name__}: what it changes is common to all heads and queries of a layer; leave "
                "heads and queries out"
            )
        sink_logit = changed.sink_logit
        if sink_logit is not call.sink_logit and sink_logit is not None:
            before = torch.full_like(sink_logit, -torch.inf) if call.sink_logit is None else call.sink_logit
            sink_logit = torch.where(heads.to(sink_logit.device), sink_logit, before)
        instead = _instead(Scores(dataclasses.replace(changed, log_sum_exp=None)), heads, first, stop)
        return dataclasses.replace(call, changes=(*call.changes, instead), sink_logit=sink_logit, log_sum_exp=None)


@dataclass(frozen=True, eq=False)
class _instead(ScoreChange):
    """Some heads and queries have the logits of another call."""

    scores: Scores
    heads: Bool[Tensor, "head"]
    first: int
    stop: int

    def __call__(self, logits: Float[Tensor, "head query key"], place: Place) -> Float[Tensor, "head query key"]:
        position = place.query_position
        rows = (position >= self.first) & (position < self.stop)
        if not bool(rows.any()):
            return logits
        query_stop, key_stop = place.query_start + place.num_queries, place.key_start + place.num_keys
        query = self.scores.query(place.query_start, query_stop)
        key = self.scores.key(place.key_start, key_stop)
        out = torch.empty(len(query), query.shape[1], key.shape[1], device=query.device)
        others = self.scores.logits(query, key, place.query_start, place.key_start, out)
        heads = self.heads.to(logits.device)
        return torch.where(heads[:, None, None] & rows[:, None], others.to(logits.dtype), logits)
