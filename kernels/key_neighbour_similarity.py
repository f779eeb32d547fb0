"""How alike neighbouring keys are: what a cache keeps twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probe.kernels.dense import Dense
from probe.kernels.keys import Keys, cosine
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class key_neighbour_similarity(Statistic):
    """Cosine of each key with the key one position before it, in the same key-value head, after rotation; 0 where
    either is zero. The first key has none before it: NaN, or left out of its block where keys are pooled.

    As the cache holds them: a rotary embedding turns the two by one position's angle against each other, so that equal
    keys before rotation come out below 1. Keys that are hidden from every query count like the others.
    """

    kind = "key"
    arrays: ClassVar = {"": ArrayFacts(("kv_head", "key"), "")}
    source = "this toolkit's own; Wang et al. 2024 (2407.08454) merge runs of adjacent keys by their cosine"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        key = dense.call.key.double()
        return {"": torch.nn.functional.pad(cosine(key[:, 1:], key[:, :-1]), (1, 0), value=torch.nan)}

    def of_keys(self, keys: Keys) -> dict[str, Tensor]:
        before = keys.key[:, :-1] if keys.before is None else torch.cat([keys.before, keys.key[:, :-1]], 1)
        return {"": cosine(keys.key[:, keys.num_keys - before.shape[1] :], before)}
