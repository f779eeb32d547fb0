"""How much of a head's output comes from each span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class output_norm_share(Statistic):
    """‖Σ_{j in span} p_ij v_j‖ over ‖Σ_j p_ij v_j‖ of every decoding query i, for each of the sample's spans.

    Above 1 where the span's part and the rest cancel; 0 where the whole output is 0. Before the output projection: it
    says what moves, not what the model makes of it.
    """

    kind = "row"
    rows_join = True
    arrays: ClassVar = {"": ArrayFacts(("head", "row", "span"), "ratio")}
    source = (
        "this toolkit's own; Gu et al. 2024 (2410.10781) and Guo et al. 2024 (2410.13835) weigh sinks by value norms"
    )

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        whole = (dense.probability @ dense.value).norm(dim=-1)
        shares = []
        for span in dense.spans:
            inside = dense.inside(span)
            part = (dense.probability[..., inside] @ dense.value[:, inside]).norm(dim=-1)
            shares.append(torch.where(whole == 0, whole, part / whole))
        return {"": torch.stack(shares, -1) if shares else whole.new_zeros(*whole.shape, 0)}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        """Return the outputs themselves, the whole one last: they are summed over stretches of keys."""
        spans = [block.keys_between(span.start, span.stop) for span in block.spans]
        outputs = [block.output(keys.start, keys.stop) for keys in spans]
        return {"": torch.stack([*outputs, block.output(0, block.probability.shape[-1])], 2)}

    def of_rows(self, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return their norms over the whole one's."""
        part = arrays[""].norm(dim=-1)
        part, whole = part[..., :-1], part[..., -1:]
        return {"": torch.where(whole == 0, whole, part / whole)}
