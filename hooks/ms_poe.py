"""Ms-PoE: each head interpolates positions by a factor of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import Change
from probe.hooks.attention.change_of_positions import ChangeOfPositions
from probe.hooks.attention.interface import name_of
from probe.hooks.attention.other_logits import OtherLogits
from probe.hooks.attention.rotation import Rotation, rotations
from probe.hooks.attention.tap import site
from probe.hooks.attention.turner import Turner
from probe.hooks.sequence.prompt_length import PromptLengths
from probe.kernels.call import Call

Order = Literal["rank", "code", "index"]


@dataclass(frozen=True)
class ms_poe(ChangeOfPositions):
    """Interpolate positions head by head, the heads that spread least the most: `with ms_poe()(model):`.

    A head of rank k among its layer's H heads divides positions by r_min + (r_max − r_min) · k / H. Heads are ranked,
    once for each prompt, by the share of keys to which its last row gives more than `threshold` times the row's mean,
    before positions turn queries and keys; rank 0 has the largest share. Zhang et al. (2024, arXiv 2403.04797, and
    their code).

    Three choices. The row is that of the prompt's last token but one, since here as in a trace the last token goes
    through on its own. The ranks are of that forward, so a prompt that comes in chunks is refused. And `order` says
    what the code does otherwise than its paper says. It composes with linear, YaRN or Llama 3 scaling of a model, and
    is refused for dynamic scaling and where there are no rotary positions.
    """

    r_min: float = 1.2
    """The smallest factor, at least 1; the authors'."""
    r_max: float = 1.8
    """What factors stay below; the authors'."""
    first_layer: int = 2
    """The first layer that is changed, from 0; the authors leave out the first two."""
    threshold: float = 3.0
    """How many times the row's mean a key gets that counts; the authors'."""
    order: Order = "rank"
    """`rank`: a head's factor is that of its rank, as in the paper. `code`: head h has the factor of the number of the
    head at rank h, as the authors' code indexes (an order taken for its inverse). `index`: of its number, their
    "normal" heads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.r_min <= self.r_max:
            raise UsageError(f"ms_poe: 1 <= r_min <= r_max, not {self.r_min} and {self.r_max}")
        if self.first_layer < 0:
            raise UsageError(f"ms_poe: first_layer is at least 0, not {self.first_layer}")
        if self.threshold <= 0:
            raise UsageError(f"ms_poe: threshold lies above 0, not {self.threshold}")
        if self.order not in get_args(Order):
            raise UsageError(f"ms_poe: order is {self.order!r}; expected {', '.join(get_args(Order))}")

    def change(self, model: PreTrainedModel) -> Change:
        """See `ChangeOfCalls.change`."""
        of_layer = {layer: r for layer, r in rotations(model, 1, "ms_poe").items() if layer >= self.first_layer}
        if not of_layer:
            raise UsageError(f"ms_poe: {name_of(model)} has no rotary positions from first_layer={self.first_layer} on")
        lengths, turners = PromptLengths(), dict[tuple[int, float], Turner]()
        factors = dict[tuple[int, int], list[float]]()

        def change(here: site, sample: int, call: Call) -> Call:
            if call.layer not in of_layer:
                return call
            rotation, place = of_layer[call.layer], (call.layer, sample)
            if call.query_start == 0:
                length = lengths.of(here, sample, "ms_poe")
                if call.num_queries < length - 1:
                    raise UsageError(
                        f"ms_poe: its heads are ranked by the end of the prompt, of whose {length} tokens the first "
                        f"forward holds {call.num_queries}; put it through at once (chunk_tokens={length})"
                    )
                factors[place] = self._factors(rotation, call)
            elif place not in factors:
                raise UsageError("ms_poe: its heads are ranked by a prompt's first forward, which it has not seen")
            of_heads = []
            for factor in factors[place]:
                known = id(rotation), factor
                if known not in turners:
                    turners[known] = _by_factor(rotation, factor)
                of_heads.append(turners[known])
            group = call.num_heads // call.num_kv_heads
            heads = list(enumerate(of_heads))
            query = torch.cat([turn(call.query[h : h + 1], call.query_start) for h, turn in heads])
            key = torch.cat([turn(call.key[h // group : h // group + 1], call.key_start) for h, turn in heads])
            changed = dataclasses.replace(call, query=query, key=key, log_sum_exp=None)
            if group == 1:
                return changed
            # A group's heads share one key, which each of them here meets somewhere else.
            own = OtherLogits.of(changed)
            return dataclasses.replace(call, changes=(own, *call.changes), log_sum_exp=None)

        return change

    def _factors(self, rotation: Rotation, call: Call) -> list[float]:
        """Return each head's factor, from the last row of the call."""
        heads = torch.arange(call.num_heads)
        if self.order == "index":
            rank = heads
        else:
            strongest_first = torch.argsort(self._shares(rotation, call), descending=True, stable=True)
            rank = strongest_first if self.order == "code" else torch.argsort(strongest_first)
        span = self.r_max - self.r_min
        return [self.r_min + span * k / call.num_heads for k in rank.tolist()]

    def _shares(self, rotation: Rotation, call: Call) -> Float[Tensor, "head"]:
        """Return which share of the keys each head's last row attends to with more than the threshold."""
        back = Turner(rotation, lambda position: torch.zeros(len(position), len(rotation.inverse_frequency)))
        last = call.query_start + call.num_queries - 1
        first = call.key_start if call.window is None else max(call.key_start, last + 1 - call.window)
        query = back(call.query[:, -1:], last).unflatten(0, (call.num_kv_heads, -1)).squeeze(2)
        key = back(call.key[:, first - call.key_start : last + 1 - call.key_start], first)
        row = (query @ key.transpose(1, 2) * call.scale).flatten(0, 1).softmax(-1)
        counted: Tensor = row > self.threshold * row.mean(-1, keepdim=True)
        return counted.double().mean(-1).cpu()


def _by_factor(rotation: Rotation, factor: float) -> Turner:
    slower = rotation.inverse_frequency / factor
    return Turner(rotation, lambda position: position[:, None] * slower)
