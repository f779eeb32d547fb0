"""A recurrence that holds its last tokens alone: what came before a window is no longer in its state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.kernels.recurrence import BY_TOKEN, Recurrence


@dataclass(frozen=True, eq=False)
class WindowedRecurrence(Recurrence):
    """A recurrence without a delta rule of which each state holds the last `window` tokens: S_t = Σ_{j > t − r} ….

    The states are sums over stretches of tokens, each decayed to the stretch's end and put together (two stacks make a
    queue of them), never the difference of two sums: where little of a state decays that would leave few digits.
    """

    window: int = 1
    """r, in tokens."""
    earlier: Recurrence | None = None
    """The tokens just before the first, at least r − 1 of them or all that there are."""
    heads: Bool[Tensor, "state_head"] | None = None
    """True for the heads that have a window; None for all."""

    def states(self, counts: Sequence[int]) -> Iterator[Float[Tensor, "state_head state channel"]]:
        """See `Recurrence.states`; time grows with the number of counts, not with the window."""
        inputs, first = self._inputs()
        ranges = [(max(0, first + count - self.window), first + count) for count in counts]
        others = iter(()) if self.heads is None else super().states(counts)
        for count, (_, state) in zip(counts, _sums(inputs, ranges), strict=True):
            full = None if self.heads is None else next(others)
            yield self.state_before.to(self.exact_dtype) if count == 0 else self._chosen(state, full, 0)

    def outputs(
        self,
    ) -> tuple[Float[Tensor, "token state_head channel"], Float[Tensor, "state_head state channel"]]:
        """See `Recurrence.outputs`."""
        inputs, first = self._inputs()
        one_decay = inputs.block(0, 1).one_decay
        size = self.block_tokens if one_decay else min(self.block_tokens, self.window)
        blocks = [(at, min(at + size, self.num_tokens)) for at in range(0, self.num_tokens, size)]
        # What all of a block's tokens see of what came before it.
        ranges = []
        for start, stop in blocks:
            begin = max(0, first + stop - self.window)
            ranges.append((min(begin, first + start), first + start))
        read = []
        for (start, stop), (begin, end), (passed, held) in zip(blocks, ranges, _sums(inputs, ranges), strict=True):
            far = max(0, first + start - self.window + 1)
            query = self.queries(start, stop)
            if one_decay:
                read.append(self._read_by_products(inputs, query, (far, begin, end), passed, held))
            else:
                read.append(self._read_by_steps(inputs, query, (far, begin, end), passed, held))
        output = self.gated(torch.cat(read))
        (last,) = self.states([self.num_tokens])
        if self.heads is None:
            return output, last
        others, _ = super().outputs()
        return self._chosen(output, others, 1), last

    def cut(self, first: int, stop: int, state_before: Float[Tensor, "state_head state channel"]) -> Recurrence:
        """See `Recurrence.cut`."""
        inputs, start = self._inputs()
        plain = inputs.cut(max(0, start + first - self.window + 1), start + first, inputs.state_before)
        cut = super().cut(first, stop, state_before)
        assert isinstance(cut, WindowedRecurrence)
        return dataclasses.replace(cut, earlier=plain if plain.num_tokens else None)

    def kept_beyond(self, read: Float[Tensor, "state_head ..."]) -> Float[Tensor, "state_head ..."]:
        """Return what is left of something said of each head where its window ends."""
        if self.heads is None:
            return torch.zeros_like(read)
        return read * ~self.heads.to(read.device).view(-1, *[1] * (read.ndim - 1))

    def plain(self) -> Recurrence:
        """Return the same tokens without a window."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(Recurrence)}
        return Recurrence(**fields)

    def _inputs(self) -> tuple[Recurrence, int]:
        """Return the tokens with those before them, from an empty state, and how many these are."""
        if self.delta or self.bonus is not None:
            raise ValueError("a recurrence with a delta rule or a bonus has no window")
        own = writes_of(self.plain())
        return (own, 0) if self.earlier is None else (followed([self.earlier, own]), self.earlier.num_tokens)

    def _chosen(self, windowed: Tensor, full: Tensor | None, axis: int) -> Tensor:
        if self.heads is None or full is None:
            return windowed
        return torch.where(
            self.heads.to(windowed.device).view(*[1] * axis, -1, *[1] * (windowed.ndim - axis - 1)), windowed, full
        )

    def _read_by_products(
        self, inputs: Recurrence, query: Tensor, cuts: tuple[int, int, int], passed: Tensor, held: Tensor
    ) -> Float[Tensor, "token state_head channel"]:
        """Read a block with one decay: what its first token sees begins at the first cut, what all see lies between the
        other two, and its own tokens come after these."""
        far, begin, end = cuts
        if begin == end:
            return inputs.block(far, end + len(query)).read_within(query, self.window)
        own = inputs.block(end, end + len(query))
        left = own.decay_from_start()[..., 0]
        read = torch.einsum("chn,hnp->chp", query, held) * left + own.read_within(query)
        if far == begin:
            return read
        leaving = inputs.block(far, begin)
        ahead = torch.arange(end - far, end - far + len(query), device=query.device)[:, None]
        seen = ahead - torch.arange(begin - far, device=query.device) < self.window
        weights = torch.einsum("chn,khn->hck", query, leaving.key * leaving.decay_until_end()[..., 0]) * seen
        written = weights @ (leaving.gate * leaving.value).transpose(0, 1)
        return read + left * passed[..., 0] * written.transpose(0, 1)

    def _read_by_steps(
        self, inputs: Recurrence, query: Tensor, cuts: tuple[int, int, int], passed: Tensor, held: Tensor
    ) -> Float[Tensor, "token state_head channel"]:
        """Do the same token by token: forwards through its own, backwards through those that not all see."""
        far, begin, end = cuts
        leaving = [torch.zeros_like(held)]
        if far < begin:
            block = inputs.block(far, begin)
            decays, writes = block.decay_each(), block.gate * block.value
            left = torch.ones_like(decays[0])
            for decay, key, value in zip(decays.flip(0), block.key.flip(0), writes.flip(0), strict=True):
                leaving.append(leaving[-1] + left * key[..., None] * value[..., None, :])
                left = left * decay
        own = inputs.block(end, end + len(query))
        read = []
        for t, (state, decay) in enumerate(zip(own.states_each(held), own.decay_each(), strict=True)):
            passed = passed * decay
            # The first query sees as many of the far end as there are, the last none.
            there = min(len(query) - 1 - t, len(leaving) - 1)
            read.append(torch.einsum("hn,hnp->hp", query[t], state + passed * leaving[there]))
        return torch.stack(read)


def writes_of(recurrence: Recurrence) -> Recurrence:
    """Return what a recurrence does to an empty state, without what is read of it."""
    return dataclasses.replace(
        recurrence,
        query=recurrence.query[..., :0],
        read_gate=None,
        state_before=torch.zeros_like(recurrence.state_before),
    )


def followed(parts: Sequence[Recurrence]) -> Recurrence:
    """Return the tokens of all, each of which begins where the one before ends."""
    joined: dict[str, Any] = {}
    for name in BY_TOKEN:
        tensors = [getattr(each, name) for each in parts]
        if any(each is not None for each in tensors):
            if name == "log_factor":
                tensors = _factors(parts)
            joined[name] = torch.cat(tensors)
    return dataclasses.replace(parts[0], **joined)


def _factors(parts: Sequence[Recurrence]) -> list[Tensor]:
    found = [
        each.value.new_zeros(each.num_tokens, 1, 1, 1) if each.log_factor is None else each.log_factor for each in parts
    ]
    shape = torch.broadcast_shapes(*(each.shape[1:] for each in found))
    return [each.expand(-1, *shape) for each in found]


@dataclass
class _queue:
    """Sums over stretches of tokens that follow one another, the oldest of which can be taken off."""

    old: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Decay and sum of a stretch with all that follow it up to the last old one, the oldest at the end."""
    new: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Decay and sum of each stretch after these."""
    of_new: tuple[Tensor, Tensor] | None = None
    """Decay and sum of all of these together."""

    def push(self, stretch: tuple[Tensor, Tensor]) -> None:
        self.new.append(stretch)
        self.of_new = stretch if self.of_new is None else _after(self.of_new, stretch)

    def pop(self) -> None:
        if not self.old:
            for stretch in reversed(self.new):
                self.old.append(_after(stretch, self.old[-1]) if self.old else stretch)
            self.new, self.of_new = [], None
        self.old.pop()

    def total(self) -> tuple[Tensor, Tensor] | None:
        if not self.old:
            return self.of_new
        return self.old[-1] if self.of_new is None else _after(self.old[-1], self.of_new)


def _after(first: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return first[0] * then[0], then[0] * first[1] + then[1]


def _sums(inputs: Recurrence, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the decay over each range of tokens and the state that it leaves; both ends of the ranges ascend."""
    cuts = sorted({end for each in ranges for end in each})
    empty = torch.zeros_like(inputs.state_before, dtype=inputs.exact_dtype)
    nothing = torch.ones_like(empty[:, :1, :1]), empty
    queue, pushed, popped = _queue(), 0, 0
    for begin, end in ranges:
        while pushed + 1 < len(cuts) and cuts[pushed] < end:
            first, stop = cuts[pushed : pushed + 2]
            queue.push(_stretch(inputs, first, stop))
            pushed += 1
        while cuts[popped] < begin:
            queue.pop()
            popped += 1
        total = queue.total()
        yield nothing if total is None else total


def _stretch(inputs: Recurrence, first: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return the decay over some tokens, and the state that they leave from an empty one."""
    decay, state = None, torch.zeros_like(inputs.state_before, dtype=inputs.exact_dtype)
    for begin in range(first, stop, inputs.block_tokens):
        block = inputs.block(begin, min(begin + inputs.block_tokens, stop))
        decay = block.decay_over() if decay is None else decay * block.decay_over()
        state = block.advance(state)
    assert decay is not None
    return decay, state
