"""Length of each key vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.dense import Dense
from probe.kernels.keys import Keys
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class key_norm(Statistic):
    """L2 norm of the key vector at each position, after rotation, one for each key-value head."""

    kind = "key"
    arrays: ClassVar = {"": ArrayFacts(("kv_head", "key"), "")}
    source = "Guo et al. 2024 (2410.13835) and Gu et al. 2024 (2410.10781): norms at the sink token"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        return {"": dense.call.key.double().norm(dim=-1)}

    def of_keys(self, keys: Keys) -> dict[str, Tensor]:
        return {"": keys.key.float().norm(dim=-1)}
