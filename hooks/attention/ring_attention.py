"""A model's attention over the keys of all ranks, in the place of that over its own stretch of the prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import NotReproducible
from probe.hooks.attention.tap import site, tap
from probe.kernels.call import Call
from probe.kernels.ranked_output import ranked_output
from probe.kernels.ring import Ring


class ring_attention(tap):
    """Keeps each layer's keys and values, and attends with every new query over those of all ranks.

    A rank's forward sees its own stretch alone: what the model makes of that is verified, as any call is; then the
    stretch is put where it stands in the prompt, attended with over the ring, and handed to `on_call` as the call that
    it is, with its log-sum-exp over all keys. Ranks without new tokens `serve` their keys meanwhile.
    """

    part = None
    wants_calls = True

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.start = 0
        """Position of the first token of this rank's next forward."""
        self.on_call: Callable[[int, Call], None] | None = None
        """What reads the calls."""
        self._kept: dict[int, Call] = {}
        self._output: Tensor | None = None

    @property
    def num_kept(self) -> int:
        """How many tokens this rank has the keys of."""
        return min((call.num_keys for call in self._kept.values()), default=0)

    def call(self, sample: int, call: Call) -> None:
        """Attend with the stretch of this forward."""
        if call.document is not None or call.key_visible is not None or call.part != "self":
            raise NotReproducible(
                f"layer {call.layer}: packed documents, chunked attention, padding and attention over an encoder are "
                "not spread over ranks"
            )
        before = self._kept.get(call.layer)
        key, value, first = call.key, call.value, self.start
        if before is not None:
            key, value = torch.cat([before.key, key], 1), torch.cat([before.value, value], 1)
            first = before.key_start
        whole = dataclasses.replace(
            call, key=key, value=value, query_start=self.start, key_start=first, log_sum_exp=None, tokens=None
        )
        self._kept[call.layer] = dataclasses.replace(whole, query=call.query[:, :0])
        self._output = self._attended(whole)

    def change_output(self, here: site, output: Float[Tensor, "batch query head value_channel"]) -> Tensor:
        """Return what the heads put out over all keys."""
        assert self._output is not None
        made, self._output = self._output, None
        return made[None].to(output)

    def serve(self) -> None:
        """Take part in a forward of decoded tokens that another rank makes, layer by layer."""
        for call in self._kept.values():
            self._attended(dataclasses.replace(call, phase="decode", query_start=call.key_start + call.num_keys))

    def forget(self, num_tokens: int) -> None:
        """Keep the keys of the first tokens alone, that many of this rank's."""
        for layer, call in self._kept.items():
            self._kept[layer] = dataclasses.replace(
                call, key=call.key[:, :num_tokens], value=call.value[:, :num_tokens]
            )

    def _attended(self, call: Call) -> Tensor:
        output, log_sum_exp = ranked_output(call, self.ring)
        if self.on_call is not None:
            self.on_call(0, dataclasses.replace(call, log_sum_exp=log_sum_exp))
        return output
