"""What a recurrent layer attends to: the weight of every earlier value in what it reads, without a matrix of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.kernels.recurrence import Recurrence
from probe.kernels.windowed_recurrence import WindowedRecurrence


@dataclass(frozen=True, eq=False)
class HiddenRow:
    """One token's hidden attention: M_tj[p] = ∂y_t[p] / ∂v_j[p] for all j ≤ t (Ali et al. 2024, 2403.01590).

    y_t is linear in the values; with gates and decays taken as given, M is its exact coefficient. It may be negative,
    and sums to nothing in particular.
    """

    position: int
    """t."""
    weight: Float[Tensor, "state_head key"]
    """Mean of M_tj[p] over the head's channels, for the keys from 0 to t."""
    magnitude: Float[Tensor, "state_head key"]
    """Mean of |M_tj[p]|."""


class HiddenAttention:
    """Keeps what a layer wrote (keys, gates and decays, no values), and goes back through it from a chosen token.

    A row takes time and memory in proportion to the tokens before it, whatever their number.
    """

    def __init__(self) -> None:
        self._parts: list[Recurrence] = []

    def append(self, part: Recurrence) -> None:
        """Take the next tokens; raises `ValueError` where they do not follow those before, or do not begin at 0."""
        stop = self._parts[-1].stop if self._parts else 0
        if part.start != stop:
            raise ValueError(f"tokens from {part.start} on do not follow those before {stop}")
        kept = {name: getattr(part, name).clone() for name in ("key", "gate", "log_decay")}
        # The values' width is not needed, only their number of heads and their dtype.
        thin: Recurrence = dataclasses.replace(
            part,
            **kept,
            query=part.query[..., :0].clone(),
            value=part.value[..., :1].clone(),
            state_before=part.state_before[..., :0].clone(),
            read_gate=None,
            bonus=None,
        )
        if isinstance(thin, WindowedRecurrence):
            thin = dataclasses.replace(thin, earlier=None)
        self._parts.append(thin)

    def row(self, of: Recurrence, token: int) -> HiddenRow:
        """Return the row of the `token`-th token of a part that was appended."""
        dtype, position = of.exact_dtype, of.start + token
        query = of.query[token].to(dtype).repeat_interleave(of.num_heads // of.query.shape[1], 0)
        read = query[..., None]
        if of.read_gate is not None:
            read = read * of.read_gate[token].to(dtype)[:, None, :]
        found: list[Tensor] = []
        if of.bonus is not None:
            found.append(of.bonus[token].to(dtype)[None])
        stop = position + 1 if of.bonus is None else position
        edge = 0
        for part in reversed(self._parts):
            last = min(part.num_tokens, stop - part.start)
            if last > 0 and isinstance(part, WindowedRecurrence):
                # Of a window nothing is left of what came before it.
                edge = max(edge, part.start + last - part.window)
            while last > 0:
                if part.start + last == edge and isinstance(part, WindowedRecurrence):
                    read = part.kept_beyond(read)
                first = max(0, last - part.block_tokens)
                if part.start + first < edge < part.start + last:
                    first = edge - part.start
                weights, read = part.block(first, last).attended(read)
                found.append(weights)
                last = first
        rows = [(each.mean(-1), each.abs().mean(-1)) for each in reversed(found)]
        weight, magnitude = (torch.cat(each).T for each in zip(*rows, strict=True))
        return HiddenRow(position, weight, magnitude)
