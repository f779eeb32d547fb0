"""What a hook sees when a recurrent layer reads consecutive tokens: the recurrent twin of an attention call."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probe.kernels.heap import trim
from probe.kernels.recurrence_block import RecurrenceBlock

BLOCK_TOKENS = 64
"""Tokens that are put through the recurrence at once, where memory permits."""
BLOCK_ELEMENTS = 1 << 22
"""Numbers that the largest intermediate tensor of a block may hold."""
TRIM_FROM_ELEMENTS = 1 << 24
"""Entries of all states together from which giving memory back costs nothing beside them."""
BY_TOKEN = ("query", "key", "value", "gate", "log_decay", "log_factor", "read_gate", "bonus")
"""Fields of a recurrence whose first axis is the token."""
SMALLEST_LOG_DECAY = -1e5
"""Stands for the logarithm of no memory at all; its exponential is 0 in every dtype."""


@dataclass(frozen=True, eq=False)
class Recurrence:
    """One recurrent layer applied to consecutive tokens of one sample: a whole prompt, a chunk, or a decoded token.

    Every head has a state S, a matrix of `state` × `channel` numbers. With the decay a_t = exp(`log_decay`_t · `rate` +
    `log_factor`_t) and g_t the gate, for each token t, state component n and channel p:

        S_t[n, p] = a_t[n, p] S_{t−1}[n, p] + g_t[p] k_t[n] u_t[p]
        u_t[p] = v_t[p], or with `delta` v_t[p] − Σ_m k_t[m] a_t[m] S_{t−1}[m, p]
        y_t[p] = r_t[p] Σ_n q_t[n] S_t[n, p], or with a bonus r_t[p] Σ_n q_t[n] S_{t−1}[n, p] + bonus_t[p] v_t[p]

    Mamba, Mamba-2, gated delta nets, lightning attention, RG-LRU and RWKV-4 all have this form (see docs/recurrent.md).
    What comes after y (a skip of the input, an output gate, a norm) is no part of it. Padding is never in here:
    position 0 is the first real token.
    """

    layer: int
    """Index of the layer, as the model counts its layers."""
    query: Float[Tensor, "token group state"]
    """What is read: q. Heads of a group share it, as grouped-query heads share keys; never repeated to fit."""
    key: Float[Tensor, "token group state"]
    """Where it is written: k."""
    value: Float[Tensor, "token state_head channel"]
    """What is written: v."""
    gate: Float[Tensor, "token state_head #channel"]
    """How much of it: g, the input gate."""
    log_decay: Float[Tensor, "token state_head #state #channel"]
    """Logarithm of the decay a, or what becomes it when multiplied with `rate`."""
    state_before: Float[Tensor, "state_head state channel"]
    """The state before the first token, as the model held it."""
    rate: Float[Tensor, "state_head #state #channel"] | None = None
    """Constant factor of the log-decay, where a step size multiplies it (Mamba's A)."""
    log_factor: Float[Tensor, "token state_head #state #channel"] | None = None
    """Logarithm of what an intervention multiplies the decay with; None for 1."""
    delta: bool = False
    """Whether what the state already holds at k is taken from v before it is written (the delta rule)."""
    read_gate: Float[Tensor, "token state_head #channel"] | None = None
    """r; None for 1."""
    bonus: Float[Tensor, "token state_head #channel"] | None = None
    """Weight of the token's own value, where what is read is the state before the token; None elsewhere."""
    start: int = 0
    """Position of the first token."""
    phase: Literal["prefill", "decode"] = "prefill"
    """`decode` from the prompt's last token on."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return self.value.shape[0]

    @property
    def num_heads(self) -> int:
        """Number of heads, each with a state of its own."""
        return self.value.shape[1]

    @property
    def stop(self) -> int:
        """Position after the last token."""
        return self.start + self.num_tokens

    @property
    def exact_dtype(self) -> torch.dtype:
        """What it is computed in: float32, or float64 where the values are float64."""
        return torch.float64 if self.value.dtype == torch.float64 else torch.float32

    def states(self, counts: Sequence[int]) -> Iterator[Float[Tensor, "state_head state channel"]]:
        """Yield the state after the first `count` tokens for each of the counts, which ascend; 0 is the state before.

        Computed block by block, so that no more than one block's intermediate numbers are held. The answer does not
        depend on the counts but for rounding.
        """
        state, done = self.state_before.to(self.exact_dtype), 0
        for count in counts:
            while done < count:
                stop = min(done + self.block_tokens, count)
                state = self.block(done, stop).advance(state)
                done = stop
            yield state
        if state.device.type == "cpu" and done * state.numel() > TRIM_FROM_ELEMENTS:
            trim()

    def state_after(self) -> Float[Tensor, "state_head state channel"]:
        """Return the state after the last token."""
        (state,) = self.states([self.num_tokens])
        return state

    def read(
        self, token: int, before: Float[Tensor, "state_head state channel"], after: Float[Tensor, "..."]
    ) -> Float[Tensor, "state_head channel"]:
        """Return y of one token from the states before and after it."""
        dtype = self.exact_dtype
        query = self._of_heads(self.query[token : token + 1].to(dtype))[0]
        read = torch.einsum("hn,hnp->hp", query, after if self.bonus is None else before)
        if self.read_gate is not None:
            read = read * self.read_gate[token].to(dtype)
        if self.bonus is not None:
            read = read + self.bonus[token].to(dtype) * self.value[token].to(dtype)
        return read

    def outputs(
        self,
    ) -> tuple[Float[Tensor, "token state_head channel"], Float[Tensor, "state_head state channel"]]:
        """Return y of every token and the state after the last, for a recurrence that an intervention has changed.

        Where all entries of a state share their decay a block is put through by products of matrices; elsewhere token
        by token. Raises `ValueError` for the delta rule and for a bonus, which nothing changes yet.
        """
        if self.delta or self.bonus is not None:
            raise ValueError("a recurrence with a delta rule or a bonus is not put through again")
        state, found = self.state_before.to(self.exact_dtype), []
        for first in range(0, self.num_tokens, self.block_tokens):
            stop = min(first + self.block_tokens, self.num_tokens)
            read, state = self.block(first, stop).outputs(self.queries(first, stop), state)
            found.append(read)
        return self.gated(torch.cat(found)), state

    def queries(self, first: int, stop: int) -> Float[Tensor, "token state_head state"]:
        """Return q of some of the tokens, for each head."""
        return self._of_heads(self.query[first:stop].to(self.exact_dtype))

    def gated(self, read: Float[Tensor, "token state_head channel"]) -> Float[Tensor, "token state_head channel"]:
        """Return y from what is read of the states."""
        return read if self.read_gate is None else read * self.read_gate.to(read.dtype)

    def decay(self) -> Float[Tensor, "state_head token"]:
        """Return a_t, averaged over the entries of each head's state."""
        found = []
        for first in range(0, self.num_tokens, self.block_tokens):
            part = slice(first, first + self.block_tokens)
            log = self.log_decay[part].to(self.exact_dtype)
            log = log if self.rate is None else log * self.rate
            log = log if self.log_factor is None else log + self.log_factor[part]
            found.append(log.exp().mean((-2, -1)))
        return torch.cat(found).T

    def between(self, first: int, stop: int) -> Recurrence:
        """Return the part from the `first` token to the one before `stop`, with the state before it computed."""
        if (first, stop) == (0, self.num_tokens):
            return self
        (state,) = self.states([first])
        return self.cut(first, stop, state)

    def cut(self, first: int, stop: int, state_before: Float[Tensor, "state_head state channel"]) -> Recurrence:
        """Return the part from the `first` token to the one before `stop`, which begins with the given state."""
        parts = {name: each[first:stop] for name in BY_TOKEN if (each := getattr(self, name)) is not None}
        return dataclasses.replace(self, **parts, state_before=state_before, start=self.start + first)

    @property
    def block_tokens(self) -> int:
        """Tokens that go through at once: fewer where each of them needs many numbers."""
        states = self.key.shape[-1]
        decays = torch.broadcast_shapes(self.log_decay.shape[1:], () if self.rate is None else self.rate.shape)
        by_state, channels = decays[-2] > 1, decays[-1]
        by_channel = channels > 1
        if by_state and by_channel:
            return max(1, min(BLOCK_TOKENS, BLOCK_ELEMENTS // (self.num_heads * states * int(channels))))
        if self.delta and by_state:
            # Pairs of tokens have a decay for each component.
            return max(1, min(BLOCK_TOKENS, int((BLOCK_ELEMENTS / (self.num_heads * states)) ** 0.5)))
        return BLOCK_TOKENS

    def block(self, first: int, stop: int) -> RecurrenceBlock:
        """Return some of the tokens, ready to be put through."""
        dtype, part = self.exact_dtype, slice(first, stop)
        step = self.log_decay[part].to(_summed_in(self.value.device))
        factor = None if self.log_factor is None else self.log_factor[part].to(step.dtype)
        if self.rate is None:
            step = (step if factor is None else step + factor).clamp_min(SMALLEST_LOG_DECAY)
            factor = None
        return RecurrenceBlock(
            key=self._of_heads(self.key[part].to(dtype)),
            value=self.value[part].to(dtype),
            gate=self.gate[part].to(dtype),
            summed=step.cumsum(0),
            rate=None if self.rate is None else self.rate.to(dtype),
            summed_factor=None if factor is None else factor.clamp_min(SMALLEST_LOG_DECAY).cumsum(0),
            delta=self.delta,
        )

    def _of_heads(self, grouped: Float[Tensor, "token group state"]) -> Float[Tensor, "token state_head state"]:
        return grouped.repeat_interleave(self.num_heads // grouped.shape[1], dim=1)


def _summed_in(device: torch.device) -> torch.dtype:
    # Differences of sums of logarithms are what is wanted: in float32 a long sum would leave few of their digits.
    return torch.float32 if device.type == "mps" else torch.float64
