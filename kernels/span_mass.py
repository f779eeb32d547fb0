"""How much of a row's attention falls on each span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class span_mass(Statistic):
    """Σ_j p_ij over the keys of each of the sample's spans, for every decoding query i.

    Keys that the layer does not see (outside of a window, dropped from a sliding cache) give nothing.
    """

    kind = "row"
    rows_join = True
    arrays: ClassVar = {"": ArrayFacts(("head", "row", "span"), "probability")}
    source = "Hsieh et al. 2024 (2406.16008), document attention, as a sum rather than a mean over the tokens"

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        masses = [dense.probability[..., dense.inside(span)].sum(-1) for span in dense.spans]
        empty = dense.probability.new_zeros(*dense.probability.shape[:2], 0)
        return {"": torch.stack(masses, -1) if masses else empty}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        mass = block.probability.new_zeros(*block.probability.shape[:2], len(block.spans))
        for index, span in enumerate(block.spans):
            mass[..., index] = block.probability[..., block.keys_between(span.start, span.stop)].sum(-1)
        return {"": mass}
