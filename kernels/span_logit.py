"""How much each head writes from each span into the answer's logit over a distractor's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.block import Block
from probe.kernels.dense import Dense
from probe.kernels.statistic import ArrayFacts, Statistic


@dataclass(frozen=True)
class span_logit(Statistic):
    """Direct logit attribution: what Σ_{j in span} p_ij v_j of a head, through its part of the output projection and
    the unembedding, adds to the right answer's logit over a distractor's at decoding query i.

    The answer's token is the sample's right one for that row, whatever the model said; the other is the mean over the
    sample's distractor answers, or over the vocabulary where it has none. Norms on the way (the final one, one behind
    the output projection) are linear with their scale frozen at what it was at that row; biases are nobody's. `all` is
    the same over all keys, not over the spans alone. It is the direct path alone: what later layers make of a head's
    output is not in it. Rows beyond the right answer are NaN, and rows where every distractor has the answer's token.
    After a wrong token the row's text is no longer the right answer's. What an intervention does to a head's output is
    not seen. The rows' scales come after the scan, which gives the products; the trace has them multiplied.
    """

    kind = "row"
    rows_join = True
    needs_logit_direction = True
    arrays: ClassVar = {
        "": ArrayFacts(("head", "row", "span"), "logit"),
        "all": ArrayFacts(("head", "row"), "logit", meaning="over all keys"),
    }
    source = (
        "direct logit attribution: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits), with the "
        "final norm's scale frozen as in TransformerLens; Wang et al. 2022 (2211.00593); split over spans: this "
        "toolkit's own"
    )

    def reference(self, dense: Dense) -> dict[str, Tensor]:
        direction = _given(dense.call.logit_direction).double()
        # What each key adds, [head, query, key]: no key's value is summed with another's before the product.
        added = dense.probability * (direction @ dense.value.transpose(1, 2))
        spans = [added[..., dense.inside(span)].sum(-1) for span in dense.spans]
        whole = added.sum(-1)
        return {"": torch.stack(spans, -1) if spans else whole.new_zeros(*whole.shape, 0), "all": whole}

    def blocked(self, block: Block) -> dict[str, Tensor]:
        direction = _given(block.logit_direction).to(block.probability)
        whole = (block.output(0, block.probability.shape[-1]) * direction).sum(-1)
        added = whole.new_zeros(*whole.shape, len(block.spans))
        for index, span in enumerate(block.spans):
            keys = block.keys_between(span.start, span.stop)
            added[..., index] = (block.output(keys.start, keys.stop) * direction).sum(-1)
        return {"": added, "all": whole}


def _given(direction: Tensor | None) -> Tensor:
    if direction is None:
        raise UsageError("span_logit: the call does not say what its heads' outputs add to a logit (logit_direction)")
    return direction
