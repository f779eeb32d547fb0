"""Lists of numbers in an option."""

from __future__ import annotations

from probe.errors import UsageError


def whole_numbers(option: str, text: str | None, *, least: int = 1) -> tuple[int, ...] | None:
    """Return whole numbers from `least` on that commas separate; UsageError for anything else, and for one twice."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit() and least <= int(part[:10]) < 10**9):
            above = "above 0" if least == 1 else f"from {least} on"
            raise UsageError(f"{option}: expected whole numbers {above} separated by commas, got {part!r}")
        if parts.count(part) > 1:
            raise UsageError(f"{option}: {part} is given twice")
    return tuple(int(part) for part in parts)


def fractions(option: str, text: str | None) -> tuple[float, ...] | None:
    """Return numbers from 0 to 1 that commas separate; raises UsageError for anything else, and for one twice."""
    if text is None:
        return None
    numbers = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            raise UsageError(f"{option}: expected numbers from 0 to 1 separated by commas, got {part.strip()!r}")
        if number in numbers:
            raise UsageError(f"{option}: {part.strip()} is given twice")
        numbers.append(number)
    return tuple(numbers)
