"""The text that a needle hides in: sentences from the lexicon's templates, or from a user's own file."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import count, islice
from pathlib import Path

from probe.errors import NotAvailable, UsageError
from probe.workloads.lexicon import SLOTS, TEMPLATES
from probe.workloads.own_file import check_own_file

_SLOT = re.compile(r"{(\w+)}")
# A sentence ends at . ! or ? (closing quotes and brackets included) before white space and no small letter, after their
# full-width forms, and at an empty line.
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[^\sa-z])|(?<=[。！？])|\n\s*\n")
# A stretch without any full stop (a table, a poem) is cut at white space, so that lengths stay within a sentence.
_MAX_WORDS = 60


def template_sentence(rng: random.Random) -> str:
    """Return one sentence of the lexicon's templates, its template and each of its slots drawn uniformly."""
    return _SLOT.sub(lambda slot: rng.choice(SLOTS[slot[1]]), rng.choice(TEMPLATES))


def haystack_sentences(source: str, rng: random.Random) -> Iterator[tuple[str, int]]:
    """Yield `(sentence, repeat)` for ever.

    `templates` draws from the lexicon and never repeats on purpose: repeat is 0. Any other `source` is the path of a
    UTF-8 text file: its sentences in order, from a sentence that `rng` draws, and round again from the file's beginning
    when it ends; `repeat` counts how often the sentence has already been yielded.
    """
    if source == "templates":
        while True:
            yield template_sentence(rng), 0
    known = file_sentences(source)
    first = rng.randrange(len(known))
    for i in count():
        yield known[(first + i) % len(known)], i // len(known)


def file_sentences(path: str) -> tuple[str, ...]:
    """Return the sentences of a UTF-8 text file in order, white space inside each one single spaces.

    Raises `NotAvailable` where the file cannot be read, `UsageError` where it holds no text.
    """
    try:
        state = Path(path).stat()
        known = _read(path, state.st_mtime_ns, state.st_size)
    except FileNotFoundError:
        raise NotAvailable(f"haystack {path}: there is no such file, and it is not `templates` or `none`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise NotAvailable(f"haystack {path}: {error}") from error
    if not known:
        raise UsageError(f"haystack {path}: the file holds no text")
    return known


@lru_cache(maxsize=2)
def _read(path: str, changed_ns: int, size: int) -> tuple[str, ...]:
    check_own_file(path)
    text = Path(path).read_text(encoding="utf-8-sig")
    return tuple(sentence for piece in split_sentences(text) for sentence in _cut(piece))


def split_sentences(text: str) -> list[str]:
    """Split `text` after `.`, `!` or `?` and at empty lines; abbreviations split too."""
    pieces, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        pieces.append(text[start : end.end()])
        start = end.end()
    pieces.append(text[start:])
    return [" ".join(piece.split()) for piece in pieces if piece.split()]


def _cut(sentence: str) -> Iterator[str]:
    words = iter(sentence.split(" "))
    while part := list(islice(words, _MAX_WORDS)):
        yield " ".join(part)
