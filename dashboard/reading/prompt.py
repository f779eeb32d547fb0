"""The tokens of one unit as the Text page reads them: the prompt, what the model answered, the right answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from probe.analyses.measures.token_labels import seen
from probe.errors import UsageError
from probe.storage.trace_store import Trace
from probe.visible import visible

MOST_TOKENS: Final = 2048
"""Tokens of one answer of the server, at most."""

MOST_CHARACTERS: Final = 120
"""Characters that are shown of a token; a longer one is cut and says so."""

MOST_HITS: Final = 10_000
"""Places that a search leads to; more are counted."""

MOST_SPANS: Final = 2000
"""Spans that are outlined; the first ones, and the page says that there are more."""


@dataclass(frozen=True)
class Section:
    """Tokens that belong together, by slot: positions of the prompt, then of the answer, then the right answer's."""

    name: str
    """`prompt`, `response` or `answer`."""
    start: int
    stop: int
    label: str
    """What it is, in words; empty for the prompt."""


@dataclass(frozen=True)
class Hits:
    """Where a text was found."""

    number: int
    """How often; all are counted."""
    places: tuple[tuple[int, int], ...]
    """Slots of the first `MOST_HITS`: first token, and that after the last."""


class Prompt:
    """One unit's tokens. Slots number them all; a slot of the prompt or the model's answer is its position."""

    def __init__(self, trace: Trace) -> None:
        """Read which tokens there are; their text is read when it is asked for."""
        self.trace = trace
        """The unit."""
        outcome = trace.outcome
        answered: Sequence[int] = () if outcome is None else outcome.response_tokens
        self.num_positions = len(trace.sample) + len(answered)
        """Tokens of the prompt and of the model's answer."""
        self.size = self.num_positions + len(trace.sample.answer_tokens)
        """Tokens in all."""
        self.sections = tuple(_sections(trace, len(answered)))
        """The parts that are there."""
        self.withheld = _withheld(trace)
        """Why no text stands here, in words; empty where it does."""
        self._found: tuple[str, Hits] | None = None

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """Token ids by slot; −1 where a private trace withheld them."""
        if self.trace.private:
            return np.full(self.size, -1, np.int64)
        outcome = self.trace.outcome
        answered: tuple[int, ...] = () if outcome is None else outcome.response_tokens
        return np.array([*self.trace.sample.tokens, *answered, *self.trace.sample.answer_tokens], np.int64)

    def words(self, start: int, stop: int) -> list[str]:
        """Return what each token of a range of slots reads as, as it can be shown; its id where no text is known."""
        text = self.trace.token_text
        return [_shown(text.get(int(token), ""), int(token)) for token in self.ids[start:stop]]

    def find(self, wanted: str) -> Hits:
        """Return where a text stands in the tokens joined, upper and lower case alike; overlaps count once.

        Raises UsageError where no token's text is known.
        """
        if self.withheld:
            raise UsageError(f"there is no text to search: {self.withheld}")
        # The same is asked again for every head that is looked at.
        if self._found is not None and self._found[0] == wanted:
            return self._found[1]
        joined, ends = self._joined
        number = 0
        places: list[tuple[int, int]] = []
        for match in re.finditer(re.escape(wanted), joined, re.IGNORECASE):
            number += 1
            if len(places) < MOST_HITS:
                first, last = np.searchsorted(ends, [match.start(), match.end() - 1], side="right")
                places.append((int(first), int(last) + 1))
        found = Hits(number, tuple(places))
        self._found = (wanted, found)
        return found

    @cached_property
    def _joined(self) -> tuple[str, NDArray[np.int64]]:
        """The text of all tokens, and where in it each ends."""
        text = self.trace.token_text
        pieces = [text.get(token, "") for token in self.ids.tolist()]
        return "".join(pieces), np.cumsum([len(piece) for piece in pieces], dtype=np.int64)

    def spans(self) -> list[list[Any]]:
        """Return the spans as `[name, start, stop]`, the answer's too, the first `MOST_SPANS` of them."""
        outcome = self.trace.outcome
        found = [*self.trace.sample.spans, *(() if outcome is None else outcome.response_spans)]
        found = [span for span in found if len(span) and span.start < self.num_positions]
        return [[visible(span.name), span.start, min(span.stop, self.num_positions)] for span in found[:MOST_SPANS]]


def _shown(text: str, token: int) -> str:
    if token < 0:
        return "▪"
    if not text:
        return f"⟨token {token}⟩"
    short = text[: MOST_CHARACTERS + 1]
    # A space stays a space: that it belongs to the token is seen by where the token's own ground begins.
    words = "".join(piece if piece == " " else seen(piece) for piece in short)
    cut = len(text) > MOST_CHARACTERS or len(words) > 8 * MOST_CHARACTERS
    return f"{words[:MOST_CHARACTERS]}…⟨{len(text):,} characters⟩" if cut else words


def _sections(trace: Trace, answered: int) -> list[Section]:
    size = len(trace.sample)
    sections = [Section("prompt", 0, size, "")]
    outcome = trace.outcome
    if answered and outcome is not None:
        verdict = {True: ", right", False: ", wrong"}.get(outcome.correct, "") if outcome.correct is not None else ""
        sections.append(Section("response", size, size + answered, f"What the model answered{verdict}"))
    due = len(trace.sample.answer_tokens)
    if due:
        label = "What was due after the prompt; the model was given it, token by token, for its loss"
        sections.append(Section("answer", size + answered, size + answered + due, label))
    return sections


def _withheld(trace: Trace) -> str:
    if trace.private:
        return "this trace is private, token ids and text were left out; positions, spans and numbers are all here"
    if not trace.token_text:
        return "this trace holds no token text, since no tokenizer was at hand; tokens show as their ids"
    return ""
