"""What is to be captured: a statistic, of every layer or of chosen ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from probe.errors import UsageError
from probe.hooks.recurrence.layer import without_known_recurrence
from probe.kernels.queries_and_keys import queries_and_keys
from probe.kernels.recurrence_scan import reading_interval
from probe.kernels.statistic import Statistic, parse

if TYPE_CHECKING:
    from probe.hooks.models.huggingface import HuggingFaceModel

_KINDS: Final = {"residual": "", "token": "", "recurrence": "recurrent "}
"""What the layers that a kind of statistic is computed from are called, where it is not attention layers."""

LAYERS: Final = "layers"
"""The parameter of a request that limits it to some layers."""


@dataclass(frozen=True)
class Requested:
    """One statistic, and the layers that it is wanted of."""

    statistic: Statistic
    """The statistic."""
    layers: tuple[int, ...] | None = None
    """Indices of the layers, None for all. What is limited to layers lies in those layers' own groups."""

    def of(self, layer: int) -> bool:
        """Return whether the statistic is wanted of this layer."""
        return self.layers is None or layer in self.layers

    @property
    def keeps_vectors(self) -> bool:
        """Whether it is queries, keys and the normaliser that are kept, in layers' own groups whatever is asked for."""
        return isinstance(self.statistic, queries_and_keys)


def requested(request: Any) -> Requested:
    """Return what a request asks for: `entropy`, `{attention_map: {grid: 2048, layers: [3]}}`, or a statistic.

    A list in the place of the parameters is the layers: `{queries_and_keys: [0, 3]}`. Raises UsageError for a statistic
    or a parameter that there is not, and for layers that are none.
    """
    if isinstance(request, Requested):
        return request
    if not isinstance(request, Mapping) or len(request) != 1:
        return Requested(parse(request))
    name, parameters = next(iter(request.items()))
    if isinstance(parameters, list | tuple):
        parameters = {LAYERS: parameters}
    if not isinstance(parameters, Mapping) or LAYERS not in parameters:
        return Requested(parse({name: parameters}))
    statistic = parse({name: {key: value for key, value in parameters.items() if key != LAYERS}})
    layers = _layers(name, parameters[LAYERS])
    if statistic.kind == "token":
        raise UsageError(f"{name} has no layers to choose: it is a statistic of the logits")
    if statistic.compares_layers:
        raise UsageError(f"{name} compares neighbouring layers, and cannot be limited to some of them")
    return Requested(statistic, layers)


def all_requested(requests: Sequence[Any]) -> list[Requested]:
    """Return what several requests ask for, once each: of all layers where any asks so, else of any layer named.

    What another one covers is left out: two `top_keys` of one trace would number their ranks apart.
    """
    merged: dict[str, Requested] = {}
    for each in map(requested, requests):
        before = merged.get(each.statistic.key, each)
        layers = None if before.layers is None or each.layers is None else before.layers + each.layers
        merged[each.statistic.key] = Requested(each.statistic, None if layers is None else tuple(sorted(set(layers))))
    return [
        each
        for each in merged.values()
        # Layers that were chosen lie in groups of their own.
        if not any(o.statistic.covers(each.statistic) and o.layers == each.layers for o in merged.values())
    ]


def check_layers(requests: Sequence[Requested], model: HuggingFaceModel) -> None:
    """Raise UsageError for a layer that the model does not have, or that does not attend where attention is asked.

    Likewise for a layer that does not recur where its state is asked for, and for a model that has no such layer.
    """
    for request in requests:
        kind = _KINDS.get(request.statistic.kind, "attention ")
        if request.statistic.kind == "recurrence":
            there = sorted(getattr(model, "recurrent_layers", ()))
        elif kind == "" or (request.layers is None and not getattr(model, "recurrent_layers", ())):
            there = list(range(model.num_layers))
        else:
            there = sorted(model.attention_layers)
        if not there:
            why = "it is all recurrent"
            if kind == "recurrent ":
                why = without_known_recurrence(model.hf) or "none of its layers is of a recurrent kind that is known"
            raise UsageError(f"{request.statistic.name()}: {model.name} has no {kind}layer to read: {why}")
        for layer in request.layers or ():
            if layer not in there:
                raise UsageError(
                    f"{request.statistic.name()}: {model.name} has no {kind}layer {layer}; "
                    f"it has {', '.join(map(str, there))}"
                )
    reading_interval([request.statistic for request in requests if request.statistic.kind == "recurrence"])


def check_private(requests: Sequence[Requested]) -> None:
    """Raise UsageError for what a private trace cannot hold: vectors from which tokens can be read back."""
    if any(request.keeps_vectors for request in requests):
        raise UsageError(
            "queries_and_keys cannot be kept in a private trace: the first layers' give the tokens away; "
            "leave them out, or capture without --private"
        )


def _layers(name: str, layers: Any) -> tuple[int, ...]:
    if (
        not isinstance(layers, Sequence)
        or isinstance(layers, str)
        or not layers
        or any(type(layer) is not int or layer < 0 for layer in layers)
        or len(set(layers)) < len(layers)
    ):
        raise UsageError(f"{name}: layers are a list of layer indices, each once, not {layers!r}")
    return tuple(layers)
