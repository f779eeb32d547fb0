"""Queries that grow with the logarithm of their position."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change, ChangeOfCalls
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.tap import site
from probe.hooks.loading.positions import positions
from probe.kernels.call import Call


@dataclass(frozen=True)
class log_length_scaling(ChangeOfCalls):
    """Multiply each query by max(1, ln(position + 1) / ln(training length)): `log_length_scaling()(model)`.

    Among more keys a softmax is flatter; logits that grow with the logarithm of their number hold against it. As in
    the authors' code of Self-Extend (Jin et al. 2024, arXiv 2401.01325, an option there): positions count from 0, the
    factor is never below 1, and only the product with the keys grows with it, neither a bias by distance nor a learned
    sink's logit. Up to the training length nothing changes.
    """

    training_length: int | None = None
    """Tokens up to which nothing is scaled; None for what the model's card or configuration says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training_length is not None and self.training_length < 2:
            raise UsageError(f"log_length_scaling: training_length is at least 2, not {self.training_length}")

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        length = self.training_length
        if length is None:
            said = positions(model, 1)["training_length"]
            if said is None or said["tokens"] < 2:
                raise UsageError(
                    f"log_length_scaling: nothing says for how many tokens {name_of(model)} was trained; give "
                    "training_length"
                )
            length = int(said["tokens"])

        def change(here: site, sample: int, call: Call) -> Call:
            if call.query_start + call.num_queries <= length:
                return call
            position = call.query_start + torch.arange(call.num_queries, dtype=torch.float64)
            factor = (position.add(1).log() / math.log(length)).clamp(min=1).to(call.query.device)
            query = (call.query * factor[:, None]).to(call.query.dtype)
            return dataclasses.replace(call, query=query, log_sum_exp=None)

        return change
