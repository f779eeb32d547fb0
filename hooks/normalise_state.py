"""Keep recurrent states from growing: what is longer than a limit is shrunk to it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.recurrence.change_of_recurrences import ChangeOfRecurrences
from probe.hooks.recurrence.changes import Change
from probe.kernels.exact import exact
from probe.kernels.recurrence import Recurrence


@dataclass(frozen=True)
class normalise_state(ChangeOfRecurrences):
    """Shrink a head's state to a norm wherever it is longer: `with normalise_state(20.0, layers=[0])(model):`.

    After each token h_t becomes h_t · p / ‖h_t‖ where ‖h_t‖ > p, and the next token goes on from that. For Mamba and
    Mamba-2 layers; the norm is the Frobenius norm of one head's whole state (of all of Mamba's channels), which is
    what `state_norm` measures: the choice of the head as the unit is this toolkit's. Among the remedies without
    training of Chen et al. (2024, arXiv 2410.07145), as remembered; their code and their p were not to be had.

    The recurrence is no longer linear, so it goes token by token. Since each rescaling multiplies both what the state
    keeps and what it takes up, a trace shows it as smaller decays and gates. A limit that no state reaches changes
    nothing.
    """

    max_norm: float | Sequence[float]
    """p, above 0: one for all, or one for each of `heads`, in their order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            given = self.max_norm
            several = isinstance(given, Sequence) and not isinstance(given, str)
            limits = tuple(map(float, given)) if several else (float(given),)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise UsageError(f"normalise_state: max_norm is a number or one for each head: {error}") from error
        if not all(math.isfinite(limit) and limit > 0 for limit in limits):
            raise UsageError(f"normalise_state: max_norm lies above 0, not {self.max_norm!r}")
        if several and len(limits) != len(self.heads or ()):
            raise UsageError(
                f"normalise_state: max_norm has {len(limits)} limits for {len(self.heads or ())} heads; name as many"
            )
        object.__setattr__(self, "max_norm", limits if several else limits[0])

    @property
    def sets(self) -> frozenset[str]:
        """See `Intervention.sets`."""
        return frozenset({"norm of states"})

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfRecurrences.change`."""

        def change(sample: int, recurrence: Recurrence) -> Recurrence:
            with exact(recurrence.value.device):
                kept = _kept(recurrence, self._limits(recurrence))
            if bool((kept == 1).all()):
                return recurrence
            factor = kept.log()[..., None, None]
            before = recurrence.log_factor
            return dataclasses.replace(
                recurrence,
                gate=recurrence.gate * kept[..., None].to(recurrence.gate.dtype),
                log_factor=factor if before is None else before + factor,
            )

        return change

    def _limits(self, recurrence: Recurrence) -> Float[Tensor, "state_head"]:
        """Return each head's limit; infinity for those that have none."""
        common = math.inf if isinstance(self.max_norm, Sequence) else float(self.max_norm)
        limits = torch.full((recurrence.num_heads,), common, dtype=recurrence.exact_dtype)
        given = self.max_norm if isinstance(self.max_norm, Sequence) else ()
        for (layer, head), limit in zip(self.heads or (), given, strict=bool(given)):
            if layer == recurrence.layer:
                limits[head] = limit
        return limits


def _kept(recurrence: Recurrence, limits: Float[Tensor, "state_head"]) -> Float[Tensor, "token state_head"]:
    """Return the factor by which each head's state is shrunk at each token; 1 where it is not."""
    state, limits = recurrence.state_before.to(recurrence.exact_dtype), limits.to(recurrence.value.device)
    kept = torch.ones(recurrence.num_tokens, recurrence.num_heads, dtype=state.dtype, device=state.device)
    for first in range(0, recurrence.num_tokens, recurrence.block_tokens):
        block = recurrence.block(first, min(first + recurrence.block_tokens, recurrence.num_tokens))
        steps = zip(block.decay_each(), block.key, block.gate * block.value, strict=True)
        for token, (decay, key, value) in enumerate(steps, first):
            state = torch.addcmul(key[..., None] * value[..., None, :], decay, state)
            kept[token] = (limits / state.flatten(1).norm(dim=1)).clamp(max=1)
            state = state * kept[token][:, None, None]
    return kept
