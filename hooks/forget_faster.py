"""Let heads of recurrent layers forget faster, by raising the decay of their state at every token to a power."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.interface import name_of
from probe.hooks.intervention import Intervention, standing
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.recurrence.layer import recurrent_layers

KINDS = ("mamba1", "mamba2")
"""Kinds of recurrent layers whose decay is exp(-Δ exp(A_log))."""


@dataclass(frozen=True)
class forget_faster(Intervention):
    """Raise the decay of some heads' state to a power: `with forget_faster([(0, 2)], [30.0])(model):`.

    Where a state is multiplied by exp(Δ A) at each token, with A = -exp(A_log), A becomes `factor` times as large, so
    that the decay a becomes a to the power of `factor`; what is written stays as it was. Chen et al. (2024, arXiv
    2410.07145) propose remedies without training for a state that never forgets; their code was not released, and this
    form is this toolkit's own. For Mamba and Mamba-2 layers, in any model that has them, also of a hybrid. Raises
    `UsageError` for a layer that does not recur, recurs otherwise, or has not that head.
    """

    heads: Sequence[tuple[int, int]]
    """Pairs of layer and state head, from 0, as traces count them."""
    factors: Sequence[float]
    """One a head, above 0; 1 changes nothing, less than 1 forgets more slowly."""

    def __post_init__(self) -> None:
        try:
            heads = tuple((int(layer), int(head)) for layer, head in self.heads)
            factors = tuple(float(factor) for factor in self.factors)
        except (TypeError, ValueError) as error:
            raise UsageError("forget_faster: heads are pairs of layer and head, factors are numbers") from error
        if len(heads) != len(factors) or len(set(heads)) != len(heads):
            raise UsageError(f"forget_faster: {len(heads)} heads, each named once, need as many factors")
        if not all(math.isfinite(factor) and factor > 0 for factor in factors):
            raise UsageError(f"forget_faster: factors must lie above 0, not {list(factors)}")
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "factors", factors)

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"decay of states"} if any(factor != 1 for factor in self.factors) else ())

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which the heads of `model` forget faster."""
        return self._applied(transformers_model_of(model))

    @contextmanager
    def _applied(self, model: PreTrainedModel) -> Iterator[None]:
        rates = [_rates(model, layer, head) for layer, head in self.heads]
        with ExitStack() as stack:
            stack.enter_context(standing(self, model))
            for rate, factor in zip(rates, self.factors, strict=True):
                stack.callback(_restore, rate, rate.clone())
                rate += math.log(factor)
            yield


def _restore(rate: Tensor, before: Tensor) -> None:
    rate.copy_(before)


def _rates(model: PreTrainedModel, layer: int, head: int) -> Tensor:
    """Return the part of a layer's `A_log` that is one head's, a view of the parameter."""
    found = recurrent_layers(model)
    if layer not in found:
        there = ", ".join(map(str, sorted(found))) or "no layer"
        raise UsageError(f"forget_faster: in {name_of(model)} layer {layer} does not recur; {there} does")
    kind, logarithm = type(found[layer].family).__name__, getattr(found[layer].module(), "A_log", None)
    if kind not in KINDS or not isinstance(logarithm, Tensor) or logarithm.device.type == "meta":
        raise UsageError(
            f"forget_faster: layer {layer} of {name_of(model)} ({kind}) has no A_log that could be changed"
        )
    # Mamba's own is [channel state], one head of all channels.
    heads = logarithm.detach()[None] if logarithm.ndim == 2 else logarithm.detach()
    if not 0 <= head < len(heads):
        raise UsageError(f"forget_faster: layer {layer} of {name_of(model)} has {len(heads)} heads, and no head {head}")
    return heads[head]
