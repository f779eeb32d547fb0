"""What a prompt's last tokens had in each layer, for what is chosen when it ends."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import UsageError
from probe.kernels.call import Call


class LastTokens:
    """Keeps, by layer and sample, vectors of the last `window` tokens of a prompt that comes in one piece or in chunks.

    A chunk that failed may come again in halves; a prompt that begins anew forgets the one before. Nothing is kept of
    what is decoded, so that the prompt's end can be come back to.
    """

    def __init__(self, window: int | None, who: str) -> None:
        """`window` None keeps all; `who` is the intervention that asks, for the messages."""
        self.window, self.who = window, who
        self._kept: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}
        self._ends: dict[tuple[int, int], int] = {}

    def take(self, sample: int, call: Call, vectors: Float[Tensor, "*head query channel"]) -> None:
        """Keep vectors, the queries' or others that stand for the same tokens, of a call of the prompt."""
        before = self._before(sample, call, vectors)
        stop = call.query_start + call.num_queries
        now = stop, self.latest(torch.cat([before[1], vectors], -2)).clone()
        self._kept[call.layer, sample] = [before, now]
        self._ends.pop((call.layer, sample), None)

    def latest(self, vectors: Float[Tensor, "*head token channel"]) -> Float[Tensor, "*head token channel"]:
        """Return those of the last tokens, as many as are kept."""
        return vectors if self.window is None else vectors[..., -self.window :, :]

    def at_the_end(
        self, sample: int, call: Call, vectors: Float[Tensor, "*head query channel"]
    ) -> Float[Tensor, "*head token channel"] | None:
        """Return what was kept before a decoding call that begins with the prompt's last token; None in later calls.

        Raises `UsageError` where the prompt was not seen.
        """
        where = call.layer, sample
        if where in self._ends and call.query_start > self._ends[where]:
            return None
        stop, kept = self._before(sample, call, vectors)
        self._kept[where] = [(stop, kept)]
        self._ends[where] = call.query_start
        return kept

    def end(self, sample: int, call: Call) -> int:
        """Return the position of the prompt's last token."""
        return self._ends[call.layer, sample]

    def _before(self, sample: int, call: Call, vectors: Tensor) -> tuple[int, Tensor]:
        """Return what was kept when the prompt had come as far as this call's first query."""
        if call.query_start == 0:
            return 0, vectors[..., :0, :]
        for stop, kept in self._kept.get((call.layer, sample), []):
            if stop == call.query_start:
                return stop, kept
        raise UsageError(
            f"{self.who}: layer {call.layer} goes on at position {call.query_start} of a prompt that it has not seen "
            "to that point; enter it before the prompt is read"
        )
