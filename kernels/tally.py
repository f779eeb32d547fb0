"""Arrays that every block adds to: totals, and what each key received."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from probe.kernels.block import Place
    from probe.kernels.call import Call
    from probe.kernels.dense import Dense
    from probe.kernels.keys import Keys
    from probe.kernels.statistic import Statistic
    from probe.kernels.visibility import Visibility

MOST_GRAIN = 16
"""Positions along the largest cells that a block gives."""


class Tally:
    """Merges blocks' contributions to the arrays of a statistic that have no `query`, `token` or `row` axis.

    An array whose last axis is `key` is aligned by position; another one grows where a later block is longer. Small
    ones are summed in float64 where the device has it.
    """

    def __init__(self, statistic: Statistic) -> None:
        self.facts = statistic.arrays
        self._arrays: dict[str, Tensor] = {}
        self._origin: int | None = None
        self._in_float64 = False

    @property
    def grain(self) -> int:
        """Positions that a cell of the blocks may span at most, as far as it is concerned."""
        return MOST_GRAIN

    def begin(self, call: Call, visibility: Visibility) -> None:
        """Hear of a call before its blocks come."""

    def add(self, parts: dict[str, Tensor], place: Place) -> None:
        """Add one block's contribution."""
        self.put(parts, place.key_start)

    def take_parts(self, parts: dict[str, Tensor], call: Call) -> None:
        """Add a whole call's contribution, as an epilogue collected it."""
        self.put(parts, call.key_start)

    def take_reference(self, arrays: dict[str, Tensor], dense: Dense) -> None:
        """Add a whole call's arrays, as `reference` gives them."""
        self._in_float64 = True
        self.put(arrays, dense.call.key_start)

    def put(self, parts: dict[str, Tensor], key_start: int) -> None:
        """Add parts of which those along keys begin at the position `key_start`."""
        self._origin = key_start if self._origin is None else self._origin
        if key_start < self._origin:
            room = self._origin - key_start, 0
            for suffix, held in self._arrays.items():
                if self.facts[suffix].axes[-1] == "key":
                    self._arrays[suffix] = torch.nn.functional.pad(held, room)
            self._origin = key_start
        for suffix, part in parts.items():
            along_keys = self.facts[suffix].axes[-1] == "key"
            first = key_start - self._origin if along_keys else 0
            held = self._room(suffix, part, first, along_keys)
            target = held.narrow(-1, first, part.shape[-1])
            if self.facts[suffix].merge == "max":
                torch.maximum(target, part, out=target)
            else:
                target.add_(part)

    def take(self, call: Call, new: Keys) -> None:
        """Take a call and the keys that are new in it; asked of the tallies of `key` statistics alone."""
        raise NotImplementedError

    def finish(self, key_start: int, key_stop: int) -> dict[str, Tensor]:
        """Return the arrays by suffix; those with a key axis span the keys from `key_start` to `key_stop`."""
        finished = {}
        for suffix, held in self._arrays.items():
            if self.facts[suffix].axes[-1] == "key":
                assert self._origin is not None
                before = self._origin - key_start
                after = key_stop - self._origin - held.shape[-1]
                held = torch.nn.functional.pad(held, (before, after))
            finished[suffix] = (held.float() if held.is_floating_point() and not self._in_float64 else held).cpu()
        return finished

    @property
    def merges(self) -> bool:
        """Whether it can take what another one holds: a subclass that adds up in its own way says how it merges."""
        own = {"begin", "add", "put", "take", "take_parts", "finish"}
        return "merge" in vars(next(each for each in type(self).__mro__ if own & vars(each).keys()))

    def state(self) -> dict[str, Tensor]:
        """Return what it holds, for another tally of the statistic to `merge`; nothing where nothing was added."""
        if self._origin is None:
            return {}
        arrays = {f"array {suffix}": each for suffix, each in self._arrays.items()}
        return {"origin": torch.tensor(self._origin)} | arrays

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add what another tally of the statistic held, of other queries or keys; `state` is not empty."""
        parts = {name.removeprefix("array "): each for name, each in state.items() if name != "origin"}
        self.put(parts, int(state["origin"]))

    @property
    def block_tokens(self) -> int | None:
        """Positions in a block, where an axis is one of blocks that the tally makes."""
        return None

    def coordinate(self, axis: str, size: int) -> np.ndarray[Any, Any] | None:
        """Return the coordinate of an axis that depends on what was added; None where there is none."""
        return None

    def _room(self, suffix: str, part: Tensor, first: int, along_keys: bool) -> Tensor:
        needed = first + part.shape[-1]
        held = self._arrays.get(suffix)
        if held is None:
            wide = part.is_floating_point() and not along_keys and part.device.type != "mps"
            held = torch.zeros_like(part[..., :0], dtype=torch.float64 if wide else part.dtype)
        if held.shape[-1] < needed:
            # A decoded token adds one key: room for an eighth more spares a copy at each.
            room = max(needed, held.shape[-1] * 9 // 8) if along_keys else needed
            held = torch.nn.functional.pad(held, (0, room - held.shape[-1]))
        self._arrays[suffix] = held
        return held
