"""A recurrence by its definition: token by token in float64, with every state and the whole hidden attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from probe.kernels.recurrence import Recurrence


class Stepwise:
    """The float64 definition of what a recurrence does, for short prompts: its memory grows with the square of them."""

    def __init__(self, recurrence: Recurrence) -> None:
        self.recurrence = recurrence
        """What it is computed from; begins at position 0 where the hidden attention is asked for."""
        group = recurrence.num_heads // recurrence.key.shape[1]
        self._query, self._key = (
            each.double().repeat_interleave(group, 1) for each in (recurrence.query, recurrence.key)
        )

    @cached_property
    def decay(self) -> Float[Tensor, "token state_head #state #channel"]:
        """a_t."""
        log, rate = self.recurrence.log_decay.double(), self.recurrence.rate
        log = log if rate is None else log * rate.double()
        factor = self.recurrence.log_factor
        return (log if factor is None else log + factor.double()).exp()

    @cached_property
    def states(self) -> Float[Tensor, "token state_head state channel"]:
        """S_t, the state after each token."""
        state, found = self.recurrence.state_before.double(), []
        value, gate = self.recurrence.value.double(), self.recurrence.gate.double()
        for t in range(self.recurrence.num_tokens):
            state = self.decay[t] * state
            new = value[t]
            if self.recurrence.delta:
                new = new - torch.einsum("hn,hnp->hp", self._key[t], state)
            state = state + self._key[t][..., None] * (gate[t] * new)[:, None, :]
            found.append(state)
        return torch.stack(found)

    def after_every(self, every: int, of_state: Callable[[Tensor], Tensor]) -> Float[Tensor, "state_head position"]:
        """Return what a state has, after every `every` tokens and after the last one."""
        length = self.recurrence.num_tokens
        counts = [*range(every, length, every), length]
        return torch.stack([of_state(self.states[count - 1]) for count in counts], -1)

    @cached_property
    def attention(self) -> Float[Tensor, "state_head query key channel"]:
        """M, by putting a unit value at one token at a time through the recurrence from an empty state."""
        recurrence, channels = self.recurrence, self.recurrence.value.shape[-1]
        length, heads = recurrence.num_tokens, recurrence.num_heads
        found = torch.zeros(heads, length, length, channels, dtype=torch.float64)
        for j in range(length):
            state = torch.zeros(heads, self._key.shape[-1], channels, dtype=torch.float64)
            for t in range(j, length):
                before = state
                state = self.decay[t] * state
                new = torch.full((heads, channels), float(t == j), dtype=torch.float64)
                if recurrence.delta:
                    new = new - torch.einsum("hn,hnp->hp", self._key[t], state)
                state = state + self._key[t][..., None] * (recurrence.gate[t].double() * new)[:, None, :]
                read = before if recurrence.bonus is not None else state
                y = torch.einsum("hn,hnp->hp", self._query[t], read)
                if recurrence.read_gate is not None:
                    y = y * recurrence.read_gate[t].double()
                if recurrence.bonus is not None and t == j:
                    y = y + recurrence.bonus[t].double()
                found[:, t, j] = y
        return found
