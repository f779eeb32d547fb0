"""The key that a query attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class max_probability(Statistic):
    """The largest p_ij of query i, and the position of its key (the lowest on a tie).

    A query that sees nothing has 0 and the key −1.
    """

    kind = "scan"
    arrays: ClassVar = {
        "": ArrayFacts(("head", "query"), "", merge="max"),
        "argmax_key": ArrayFacts(("head", "query"), "position", merge="argmax", meaning="its key"),
    }
    source = "a standard quantity; its key is the argmax of Wu et al. 2024 (2404.15574), sec. 2"

    def array_name(self, suffix: str) -> str:
        """Return the array's name; the key's position is called `argmax_key` alone."""
        return suffix if suffix == "argmax_key" else super().array_name(suffix)

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        largest = dense.probability.max(-1)
        nothing = ~dense.visible.any(-1)
        return {"": largest.values, "argmax_key": (dense.key_position[largest.indices]).masked_fill(nothing, -1)}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        # By the logarithm: probabilities of two different logits may round to the same number.
        largest = block.log_probability.max(-1)
        nothing = block.normaliser.num_visible == 0
        key = (largest.indices + block.key_start).masked_fill(nothing, -1)
        return {"": largest.values.exp(), "argmax_key": key}
