"""How spread a query's attention is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.epilogue import Epilogue, add_up, finish_sum, of_rows, start_sum
from probe.kernels.statistic import ArrayFacts, Statistic
from probe.kernels.triton_language import jit, tl


@dataclass(frozen=True)
class entropy(Statistic):
    """−Σ_j p_ij log p_ij over the keys that query i sees, in nats: 0 for one key, log n for n equal ones.

    A learned sink has taken its share of the probabilities, but adds no term of its own. A query that sees nothing has
    entropy 0. Not a measure of what the values do with the attention.
    """

    kind = "scan"
    arrays: ClassVar = {"": ArrayFacts(("head", "query"), "nats")}
    source = "Shannon entropy of the attention row; this toolkit's own choice of a standard quantity"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        return {"": torch.special.entr(dense.probability).sum(-1)}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        # log Z − Σ p s would cancel where heads are sharp.
        return {"": -block.sum_over_keys(block.log_probability)}

    def on_triton(self) -> tuple[Epilogue, ...]:
        return of_rows(start_sum, _update, finish_sum, "")


@jit
def _update(state, tile, memory, SHAPE, CONSTANTS):
    return add_up(state, -tl.sum(tile.probability * tile.log_probability, 1))
