"""Length of each value vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.dense import Dense
from probe.kernels.keys import Keys
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class value_norm(Statistic):
    """L2 norm of the value vector at each position, one for each key-value head."""

    kind = "key"
    arrays: ClassVar = {"": ArrayFacts(("kv_head", "key"), "")}
    source = "Guo et al. 2024 (2410.13835): value-state drains"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        return {"": dense.call.value.double().norm(dim=-1)}

    def of_keys(self, keys: Keys) -> dict[str, Tensor]:
        return {"": keys.value.float().norm(dim=-1)}
