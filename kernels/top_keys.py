"""The keys that a decoding query attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class top_keys(Statistic):
    """The positions of the `k` largest p_ij of every decoding query i, largest first, and those probabilities.

    Where fewer keys are visible the rest is −1 and 0. Keys with equal probabilities come in any order.
    """

    k: int = 8
    """How many keys."""

    kind = "row"
    rows_join = True
    arrays: ClassVar = {
        "": ArrayFacts(("head", "row", "rank"), "position"),
        "probability": ArrayFacts(("head", "row", "rank"), "probability", meaning="their probabilities"),
    }
    source = "Wu et al. 2024 (2404.15574), sec. 2, whose code takes the first"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"top_keys: k is at least 1, not {self.k}")

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        return self._top(dense.probability, dense.call.key_start, dense.visible.sum(-1))

    def blocked(self, block: Block) -> dict[str, Tensor]:
        return self._top(block.probability, block.key_start, block.normaliser.num_visible)

    def join(self, held: dict[str, Tensor], part: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the largest of both."""
        if not held:
            return part
        key, probability = (torch.cat([held[name], part[name]], -1) for name in ("", "probability"))
        # What is no key comes after keys whose probability is lost in float32.
        best = probability.masked_fill(key < 0, -1.0).topk(self.k, -1).indices
        return {"": key.gather(-1, best), "probability": probability.gather(-1, best)}

    def coordinate(self, axis: str, size: int) -> np.ndarray[Any, Any] | None:
        """Return the ranks."""
        return np.arange(size) if axis == "rank" else None

    def covers(self, other: Statistic) -> bool:
        """Return whether it has at least as many ranks: the first of them are the other's."""
        return isinstance(other, top_keys) and self.k > other.k

    def _top(self, probability: Tensor, key_start: int, num_visible: Tensor) -> dict[str, Tensor]:
        top = probability.topk(min(self.k, probability.shape[-1]), -1)
        missing = (0, self.k - top.values.shape[-1])
        rank = torch.arange(self.k, device=probability.device)
        unseen = rank >= num_visible[:, None]
        key = torch.nn.functional.pad(top.indices + key_start, missing).masked_fill(unseen, -1)
        return {"": key, "probability": torch.nn.functional.pad(top.values, missing).masked_fill(unseen, 0.0)}
