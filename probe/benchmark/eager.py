"""The core table from an attention matrix that is there: what one would write where n × n fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from probe.kernels.call import Call

Statistics = dict[str, Tensor]


class EagerAttention:
    """Logits in the model's dtype and probabilities in float32, [head, query, key], as transformers' eager attention
    makes them; at the statistics' default parameters, for a causal call over a whole prompt."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.length = call.num_keys
        position = torch.arange(self.length, device=call.query.device)
        self.distance = position[:, None] - position[None, :]
        self.visible = self.distance >= 0

    @cached_property
    def logit(self) -> Tensor:
        """Scaled logits, −inf where hidden."""
        call = self.call
        key = call.key.repeat_interleave(call.num_heads // call.num_kv_heads, 0)
        return (call.query @ key.transpose(1, 2)).mul_(call.scale).masked_fill_(~self.visible, -torch.inf)

    @cached_property
    def probability(self) -> Tensor:
        """Their softmax."""
        return self.logit.softmax(-1, dtype=torch.float32)


def _log_sum_exp(eager: EagerAttention) -> Statistics:
    return {"log_sum_exp": eager.logit.float().logsumexp(-1)}


def _entropy(eager: EagerAttention) -> Statistics:
    return {"entropy": torch.special.entr(eager.probability).sum(-1)}


def _max_probability(eager: EagerAttention) -> Statistics:
    largest, key = eager.probability.max(-1)
    return {"max_probability": largest, "argmax_key": key}


def _max_logit(eager: EagerAttention) -> Statistics:
    return {"max_logit": eager.logit.amax(-1)}


def _sink_mass(eager: EagerAttention) -> Statistics:
    return {"sink_mass": eager.probability[..., :4].sum(-1)}


def _recent_mass(eager: EagerAttention) -> Statistics:
    near = (eager.distance >= 0) & (eager.distance < 64)
    return {"recent_mass": torch.einsum("hqk,qk->hq", eager.probability, near.float())}


def _offset_mass(eager: EagerAttention) -> Statistics:
    mass = [eager.probability.diagonal(-offset, 1, 2).sum(-1) for offset in range(min(128, eager.length))]
    return {"offset_mass": torch.stack(mass, -1)}


def _match_mass(eager: EagerAttention) -> Statistics:
    tokens = eager.call.tokens
    assert tokens is not None
    match = (tokens[:, None] == tokens[None, :]) & (eager.distance > 0)
    return {"match_mass": torch.einsum("hqk,qk->hq", eager.probability, match.float())}


def _mean_distance(eager: EagerAttention) -> Statistics:
    return {"mean_distance": torch.einsum("hqk,qk->hq", eager.probability, eager.distance.float())}


def _distance_histogram(eager: EagerAttention) -> Statistics:
    # Bin 0 is distance 0, bin b from 2^(b−1) on; hidden keys have probability 0 and may fall anywhere.
    bins = torch.frexp(eager.distance.clamp_min(0).float()).exponent.flatten()
    heads = eager.call.num_heads
    histogram = eager.probability.new_zeros(heads, int(bins.max()) + 1)
    return {"distance_histogram": histogram.index_add_(1, bins, eager.probability.view(heads, -1))}


def _received_mass(eager: EagerAttention) -> Statistics:
    return {"received_mass": eager.probability.sum(1), "received_mass_num_queries": eager.visible.sum(0)}


def _attention_map(eager: EagerAttention) -> Statistics:
    tokens = 1
    while tokens * 256 < eager.length:
        tokens *= 2
    cells = -(-eager.length // tokens)
    missing = cells * tokens - eager.length
    probability = pad(eager.probability, (0, missing, 0, missing)) if missing else eager.probability
    blocks = probability.view(-1, cells, tokens, cells, tokens)
    queries = torch.full((cells, 1), tokens, device=probability.device)
    queries[-1] -= missing
    mean = blocks.sum(2).sum(-1) / queries
    return {"attention_map": mean, "attention_map_max": blocks.amax(2).amax(-1)}


def _key_norm(eager: EagerAttention) -> Statistics:
    return {"key_norm": eager.call.key.float().norm(dim=-1)}


def _value_norm(eager: EagerAttention) -> Statistics:
    return {"value_norm": eager.call.value.float().norm(dim=-1)}


STATISTICS: dict[str, Callable[[EagerAttention], Statistics]] = {
    "log_sum_exp": _log_sum_exp,
    "entropy": _entropy,
    "max_probability": _max_probability,
    "max_logit": _max_logit,
    "sink_mass": _sink_mass,
    "recent_mass": _recent_mass,
    "offset_mass": _offset_mass,
    "match_mass": _match_mass,
    "mean_distance": _mean_distance,
    "distance_histogram": _distance_histogram,
    "received_mass": _received_mass,
    "attention_map": _attention_map,
    "key_norm": _key_norm,
    "value_norm": _value_norm,
}
"""Name → its arrays, by their names in a trace."""


@torch.no_grad()
def eager_statistics(call: Call, names: Sequence[str]) -> Statistics:
    """Return the statistics of one call from its whole matrix, on the CPU."""
    eager = EagerAttention(call)
    found: Statistics = {}
    for name in names:
        found |= STATISTICS[name](eager)
    return {name: values.cpu() for name, values in found.items()}
