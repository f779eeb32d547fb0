"""How alike the keys of neighbouring layers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.dense import Dense
from probe.kernels.keys import Keys, cosine
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class key_layer_similarity(Statistic):
    """Cosine of each key, after rotation, with the key of the same position and key-value head in the attention layer
    before; 0 where either is zero. NaN in the first layer, and in one whose number or width of key-value heads is not
    that of the layer before.

    Where both layers rotate alike this is also the cosine before rotation. Heads are paired by their index, as when two
    layers' caches are merged; nothing says that heads of the same index do the same.
    """

    kind = "key"
    arrays: ClassVar = {"": ArrayFacts(("kv_head", "key"), "")}
    source = "Liu et al. 2024 (2405.14366, MiniCache), whose similarity between layers this is per head and token"
    compares_layers = True

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        if dense.below is None or dense.below.key.shape != dense.call.key.shape:
            return {}
        return {"": cosine(dense.call.key.double(), dense.below.key.double())}

    def of_keys(self, keys: Keys) -> dict[str, Tensor]:
        if keys.below is None or keys.below.key.shape != keys.key.shape:
            return {}
        return {"": cosine(keys.key, keys.below.key)}
