"""What heads put out over the keys and values of all ranks."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from probe.kernels.attention_output import attention_output
from probe.kernels.call import Call
from probe.kernels.exact import exact
from probe.kernels.ranked_scan import around, part_of
from probe.kernels.ring import Ring


def ranked_output(
    call: Call, ring: Ring
) -> tuple[Float[Tensor, "query head value_channel"], Float[Tensor, "head query"]]:
    """Return Σ_j p_ij v_j over the keys of all ranks, for this rank's queries, and log Σ exp over them in float64.

    Keys and values go around the ring once, as in Ring Attention (Liu et al. 2023): what each stretch gives is rescaled
    by its log-sum-exp as further ones come. A learned sink has its share of the output, not of the log-sum-exp. In
    float32; every rank has to call it. Raises `RankLost` where one does not come.
    """
    with exact(call.query.device):
        stretches = ring.stretches(call)
        shape = call.num_queries, call.num_heads, call.value.shape[-1]
        output = torch.zeros(shape, dtype=torch.float64, device=call.query.device)
        total = torch.full(call.query.shape[:2], -torch.inf, dtype=torch.float64, device=call.query.device)
        for rank, tensors in around(ring, call, stretches):
            part = dataclasses.replace(part_of(call, stretches[rank], tensors), sink_logit=None)
            # In float32, so that the log-sum-exp is known to as many digits.
            part = dataclasses.replace(part, query=part.query.float(), key=part.key.float(), value=part.value.float())
            given, log_sum_exp = attention_output(part)
            assert log_sum_exp is not None
            merged = torch.logaddexp(total, log_sum_exp.double())
            output = output * _share(total, merged) + given.double() * _share(log_sum_exp.double(), merged)
            total = merged
        if call.sink_logit is not None:
            output = output * torch.sigmoid(total - call.sink_logit.double()[:, None]).T[..., None]
        return output.to(call.value.dtype), total


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """exp(part − whole), 0 where a query sees nothing yet; [query head 1]."""
    share = (part - whole).exp()
    return torch.where(whole == -torch.inf, 0.0, share).T[..., None]
