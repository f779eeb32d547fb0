"""Text put together from pieces, some of them named: where each lies is known before anything is tokenised."""

from __future__ import annotations

from dataclasses import dataclass

from probe.workloads.marked_text import MarkedText


@dataclass(frozen=True)
class Stretch:
    """A named stretch of a text; it may hold other stretches."""

    name: str
    """Name of the span that it becomes, unique in its text."""
    pieces: tuple[str | Stretch, ...]
    """What it is made of, in order and with nothing between."""


def stretch(name: str, *pieces: str | Stretch) -> Stretch:
    """Return a named stretch of these pieces."""
    return Stretch(name, pieces)


def written(*pieces: str | Stretch) -> MarkedText:
    """Return the pieces one after another, nothing between them, with the range of every stretch.

    White space at a stretch's ends is left outside it. Raises ValueError where two stretches have one name.
    """
    texts: list[str] = []
    ranges: dict[str, tuple[int, int]] = {}

    def put(parts: tuple[str | Stretch, ...], start: int) -> int:
        for part in parts:
            if isinstance(part, str):
                texts.append(part)
                start += len(part)
                continue
            if part.name in ranges:
                raise ValueError(f"two stretches are named {part.name!r}")
            # Entered before what it holds, so that a whole comes before its parts.
            ranges[part.name] = (start, start)
            stop = put(part.pieces, start)
            ranges[part.name] = (start, stop)
            start = stop
        return start

    put(pieces, 0)
    text = "".join(texts)
    return MarkedText(text, {name: _trimmed(text, start, stop) for name, (start, stop) in ranges.items()})


def _trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    while start < stop and text[start].isspace():
        start += 1
    while start < stop and text[stop - 1].isspace():
        stop -= 1
    return start, stop
