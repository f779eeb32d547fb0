"""How alike the values of neighbouring layers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.dense import Dense
from probe.kernels.keys import Keys, cosine
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class value_layer_similarity(Statistic):
    """Cosine of each value with the value of the same position and key-value head in the attention layer before; 0
    where either is zero. NaN in the first layer, and in one whose number or width of key-value heads is not that of
    the layer before.

    Heads are paired by their index, as when two layers' caches are merged.
    """

    kind = "key"
    arrays: ClassVar = {"": ArrayFacts(("kv_head", "key"), "")}
    source = "Liu et al. 2024 (2405.14366, MiniCache), whose similarity between layers this is per head and token"
    compares_layers = True

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        if dense.below is None or dense.below.value.shape != dense.call.value.shape:
            return {}
        return {"": cosine(dense.call.value.double(), dense.below.value.double())}

    def of_keys(self, keys: Keys) -> dict[str, Tensor]:
        if keys.below is None or keys.below.value.shape != keys.value.shape:
            return {}
        return {"": cosine(keys.value, keys.below.value)}
