"""How far a prompt has been handed out, so that a chunk that is put through again hands out nothing twice."""

from __future__ import annotations


class handed_out:
    """For each reader and layer, the position up to which it has been given the sequence.

    A chunk that ran out of device memory in layer 7 had handed out layers 0 to 6. When it is put through again in
    halves, those layers' readers get only what they have not had: every query of every layer is handed out once, in
    order, whatever befell the chunk. What a layer hands out on the second try differs from the first by rounding
    alone.
    """

    def __init__(self) -> None:
        self._until: dict[tuple[int, int | str], int] = {}

    def first_new(self, reader: object, what: int | str, start: int, stop: int) -> int:
        """The first position from `start` to `stop` that `reader` has not been given of `what` (a layer, or logits)."""
        return min(max(start, self._until.get((id(reader), what), start)), stop)

    def done(self, reader: object, what: int | str, stop: int) -> None:
        """Note that `reader` has been given `what` up to `stop`."""
        self._until[id(reader), what] = stop
