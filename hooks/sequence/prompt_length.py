"""How long the prompt is that a forward is part of, for interventions that depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from probe.errors import UsageError
from probe.hooks.attention.tap import site

_declared: ContextVar[int | None] = ContextVar("prompt_length", default=None)


@contextmanager
def prompt_of(num_tokens: int | None) -> Iterator[None]:
    """Within the block forwards are of a prompt of so many tokens, or of what follows it; None for nobody knows."""
    token = _declared.set(num_tokens)
    try:
        yield
    finally:
        _declared.reset(token)


class PromptLengths:
    """Tells how long each sample's prompt is: the same number for a prompt's chunks and for what is decoded after it.

    `prefill` and `step` say it. In a forward of somebody else's on an empty cache the prompt is what that forward
    holds; single tokens on a cache belong to the prompt that went through last.
    """

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def of(self, here: site, sample: int, who: str) -> int:
        """Return the length in tokens; `UsageError` in the name of `who` where a cache's prompt is nobody's to know."""
        known = _declared.get()
        if known is not None:
            return known
        if here.forward.num_past == 0:
            first, stop = here.forward.queries_of(sample)
            self._seen[sample] = stop - first
        elif here.forward.num_queries > 1 or sample not in self._seen:
            raise UsageError(
                f"{who}: how long the prompt is, on which it depends, cannot be known from several tokens on a cache "
                "that others filled; put the prompt through in one forward or with probe's prefill, or give a number"
            )
        return self._seen[sample]
