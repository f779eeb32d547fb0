"""How far back a recurrent layer reads when it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probe.kernels.hidden_attention import HiddenRow
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.stepwise import Stepwise


@dataclass(frozen=True)
class effective_distance(Statistic):
    """Σ_j (t − j) |M_tj| / Σ_j |M_tj| for each decoding token t, with |M_tj| averaged over each head's channels.

    M is the hidden attention of `effective_attention`. NaN where a head reads nothing at all.
    """

    kind = "recurrence"
    arrays: ClassVar = {"": ArrayFacts(("state_head", "row"), "tokens")}
    source = "Ben-Kish et al. 2024 (2406.14528), mean distance of Mamba's hidden attention"

    def reference(self, dense: Stepwise) -> dict[str, Tensor]:
        magnitude = dense.attention.abs().mean(-1)
        position = torch.arange(magnitude.shape[-1])
        distance = (position[:, None] - position).clamp_min(0)
        return {"": (magnitude * distance).sum(-1) / magnitude.sum(-1)}

    def of_row(self, row: HiddenRow) -> dict[str, Tensor]:
        distance = row.position - torch.arange(row.magnitude.shape[-1], device=row.magnitude.device)
        return {"": (row.magnitude * distance).sum(-1) / row.magnitude.sum(-1)}
