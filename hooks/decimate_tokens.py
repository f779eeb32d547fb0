"""Let recurrent layers go over the tokens of a long prompt that matter most to them, and pass by the rest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.recurrence.change_of_recurrences import ChangeOfRecurrences
from probe.hooks.recurrence.changes import Change
from probe.kernels.recurrence import Recurrence

_LEVELS = 1e5
"""Steps that are told apart."""


@dataclass(frozen=True)
class decimate_tokens(ChangeOfRecurrences):
    """Keep of a longer prompt the tokens of largest Δ: `with decimate_tokens(64, layers=[0])(model):`.

    In each of the layers the `keep` tokens of a prompt with the largest step sizes are put through; at the others the
    state neither decays nor is written to. Ben-Kish et al. (2024, arXiv 2406.14528, DeciMamba) pool a layer's tokens by
    Δ, the largest first. Not theirs: here a token that is passed by still reads the state, and goes on to later layers,
    where theirs are taken out of the sequence; each layer chooses for itself, with the same number (nest several with
    `layers` and falling `keep` for their shrinking). Importance is the mean of Δ over a layer's channels, as remembered
    and not checked against their code. Of steps that are equal to 1e-5 of the largest the earlier is kept. For
    Mamba and Mamba-2 layers.

    The choice looks at the whole prompt, so all of it must come in one chunk. Its last token and decoded ones, which
    are not the prompt's, are always put through; a prompt of no more than `keep` tokens before its last is unchanged.
    """

    keep: int
    """Tokens of the prompt that each of the layers goes over; the authors take about the training length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.keep, int) or self.keep < 1:
            raise UsageError(f"decimate_tokens: keep is a whole number of tokens, at least 1, not {self.keep!r}")
        if self.phase != "both":
            raise UsageError(f"decimate_tokens: it acts on the prompt alone, so phase stays `both`, not {self.phase!r}")

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"tokens that states go over"})

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfRecurrences.change`."""

        def change(sample: int, recurrence: Recurrence) -> Recurrence:
            if recurrence.phase != "prefill":
                return recurrence
            if recurrence.start > 0:
                raise UsageError(
                    "decimate_tokens: which tokens are kept depends on the whole prompt, which has to go through in "
                    f"one chunk; a part of it begins at token {recurrence.start}: raise chunk_tokens"
                )
            if recurrence.num_tokens <= self.keep:
                return recurrence
            passed = ~_largest(recurrence, self.keep)
            factor = recurrence.log_factor
            return dataclasses.replace(
                recurrence,
                gate=recurrence.gate.masked_fill(passed[:, None, None], 0),
                log_decay=recurrence.log_decay.masked_fill(passed[:, None, None, None], 0),
                log_factor=None if factor is None else factor.masked_fill(passed[:, None, None, None], 0),
            )

        return change


def _largest(recurrence: Recurrence, keep: int) -> Bool[Tensor, "token"]:
    importance = recurrence.gate.double().mean((-2, -1))
    # The same word has the same step in a first layer, but for rounding.
    importance = (importance / importance.max().clamp_min(1e-30) * _LEVELS).round()
    order = torch.sort(importance, descending=True, stable=True).indices
    kept = torch.zeros_like(importance, dtype=torch.bool)
    kept[order[:keep]] = True
    return kept
