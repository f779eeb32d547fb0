"""Make attention heads weaker or stronger."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.chosen_heads import ChosenHeads, HeadPhase, as_heads, as_queries, check_choice
from probe.hooks.attention.switch import attached
from probe.hooks.attention.tap import site, tap
from probe.hooks.intervention import Intervention
from probe.hooks.loading.backend import transformers_model_of
from probe.hooks.sequence.forward_facts import Part


@dataclass(frozen=True)
class scale_heads(Intervention):
    """Multiply what the named heads put out by a factor: `with scale_heads([(2, 5)], 0.5)(model):`.

    1 changes nothing, 0 is `ablate_heads` of form `zero`, above 1 a head says more than it was trained to, below 0 the
    opposite. It is the head's output before the output projection that is multiplied, as with the mask variables of
    Michel et al. (2019, arXiv 1905.10650), which are 0 or 1; other factors are this toolkit's own. Where the head looks
    is left as it was, and so is what a trace shows of its attention. Raises `UsageError` naming the model's shape for
    heads that it does not have.
    """

    heads: Sequence[tuple[int, int]]
    """Pairs of layer and query head, from 0; a layer is named as the model counts its layers."""
    factor: float
    """What the heads' outputs are multiplied by."""
    phase: HeadPhase = "both"
    """Whether it acts on the prompt (`prefill`), from the prompt's last token on (`decode`), or on both."""
    queries: tuple[int, int] | None = None
    """Half-open range of the query positions at which it acts, None for all; within the phase."""
    part: Part = "self"
    """Whose heads, where there is an encoder and a decoder; as in `ablate_heads`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", as_heads("scale_heads", self.heads))
        object.__setattr__(self, "queries", as_queries("scale_heads", self.queries))
        for name, kinds in (("phase", HeadPhase), ("part", Part)):
            check_choice("scale_heads", name, getattr(self, name), kinds)
        if not math.isfinite(self.factor):
            raise UsageError(f"scale_heads: factor is a finite number, not {self.factor}")

    def __call__(self, model: Any) -> AbstractContextManager[None]:
        """Return the block within which the heads of `model` are scaled."""
        return self._applied(transformers_model_of(model))

    @contextmanager
    def _applied(self, model: PreTrainedModel) -> Iterator[None]:
        chosen = ChosenHeads.of(
            model, "scale_heads", self.heads, phase=self.phase, queries=self.queries, part=self.part
        )
        with attached(model, _scaling(self.factor, self.part, chosen)):
            yield


class _scaling(tap):
    def __init__(self, factor: float, part: Part, chosen: ChosenHeads) -> None:
        self.factor, self.part, self.chosen = factor, part, chosen

    def change_output(self, here: site, output: Float[Tensor, "batch query head value_channel"]) -> Tensor:
        if here.layer not in self.chosen.by_layer:
            return output
        return torch.where(self.chosen.where(here, output.device), output * self.factor, output)
