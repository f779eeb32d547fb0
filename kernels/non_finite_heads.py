"""Which heads of a layer have NaN or infinity in their queries or keys, how many, and where first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from probe.kernels.call import Call

_MOST_NAMED = 4


@dataclass(frozen=True)
class NonFiniteHead:
    """One head whose queries, or whose keys, hold values that are not finite."""

    layer: int
    """Index of the attention layer."""
    side: Literal["query", "key"]
    """Whether they are in its queries (`head` is a query head) or in its keys (a key-value head)."""
    head: int
    """Index of the head."""
    num_values: int
    """How many values are not finite."""
    first_position: int
    """Position of the first token that has any."""


class NonFiniteHeads:
    """Looks through one layer's calls for NaN and infinity, each query and each key once, without touching a score.

    Feed it the calls that a scan gets. What a bad head's own statistics are is NaN, or, where the model's operator
    hides NaN (SDPA on a CPU puts out 0 for a query of NaN), anything; those of the layer's other heads do not depend
    on it. A bad key spoils every head of its group. In the layers after it, everything is likely to be bad.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[Literal["query", "key"], int], NonFiniteHead] = {}
        self._keys_until = 0

    @property
    def found(self) -> tuple[NonFiniteHead, ...]:
        """The bad heads so far: queries before keys, by head; empty where all is finite."""
        return tuple(sorted(self._found.values(), key=lambda each: (each.side != "query", each.head)))

    @torch.no_grad()
    def update(self, call: Call) -> None:
        """Look at the call's queries, and at those of its keys that no call before it had."""
        first = min(max(self._keys_until - call.key_start, 0), call.num_keys)
        key = call.key[:, first:]
        self._keys_until = max(self._keys_until, call.key_start + call.num_keys)
        bad_query, bad_key = _bad(call.query), _bad(key)
        # One transfer from the device for both.
        if not bool(torch.stack([bad_query.any(), bad_key.any()]).any()):
            return
        self._note("query", call.layer, call.query, bad_query, call.query_start)
        self._note("key", call.layer, key, bad_key, call.key_start + first)

    def _note(self, side: Literal["query", "key"], layer: int, values: Tensor, bad: Tensor, start: int) -> None:
        for head in torch.nonzero(bad.any(dim=1)).flatten().tolist():
            num_values = int((~values[head].isfinite()).sum())
            position = start + int(bad[head].int().argmax())
            before = self._found.get((side, head))
            if before is not None:
                num_values, position = num_values + before.num_values, min(position, before.first_position)
            self._found[side, head] = NonFiniteHead(layer, side, head, num_values, position)


def in_words(found: Sequence[NonFiniteHead]) -> str:
    """Say which heads are bad in the first layer that has any, and in how many layers after it."""
    if not found:
        return ""
    layer = min(each.layer for each in found)
    here = [each for each in found if each.layer == layer]
    said = [
        f"{'query' if each.side == 'query' else 'key-value'} head {each.head} "
        f"({each.num_values} {'value' if each.num_values == 1 else 'values'} of its "
        f"{'queries' if each.side == 'query' else 'keys'}, first at position {each.first_position})"
        for each in here[:_MOST_NAMED]
    ]
    if len(here) > _MOST_NAMED:
        said.append(f"{len(here) - _MOST_NAMED} more")
    later = len({each.layer for each in found} - {layer})
    after = f"; and heads of {later} {'layer' if later == 1 else 'layers'} after it" if later else ""
    return f"NaN or infinity in layer {layer}: {', '.join(said)}{after}"


def _bad(values: Tensor) -> Tensor:
    """Head × token, True where a channel is not finite; NaN goes through aminmax, which makes no copy of the values."""
    if values.shape[1] == 0:
        return values.new_zeros(values.shape[:2], dtype=torch.bool)
    lowest, highest = values.aminmax(dim=-1)
    return ~(lowest.isfinite() & highest.isfinite())
