"""A text without a question: what a longer prefix does for the words that follow it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from probe.errors import NotAvailable
from probe.sample import Sample, Span
from probe.success import SuccessRule
from probe.workloads.grid import Cell, Grid
from probe.workloads.haystack import template_sentence
from probe.workloads.marked_text import encode, require_offsets
from probe.workloads.own_file import check_own_file

ENGLISH = Path(__file__).with_name("english.txt")
"""Chapters of the King James Version (1611, public domain), none of which the specimen `prose` was trained on."""


class _Text(NamedTuple):
    """A text in a tokenizer's tokens."""

    before: tuple[int, ...]
    """Special tokens that stand before it."""
    tokens: tuple[int, ...]
    """Its own."""
    begins_word: tuple[bool, ...]
    """Whether white space, or nothing, stands before what each token writes, or at its beginning."""


@dataclass(frozen=True)
class plain_text(Grid):
    """Stretches of a text, the same words due after prefixes of every length, whole or with what is far disturbed.

    After Sun et al. 2021 (Do long-range language models actually use long-range context?, arXiv 2109.09115): the loss
    of the targets by the prefix's length, and with the tokens beyond the nearest shuffled or replaced (dropped is a
    shorter length). The targets are the sample's answer, so that its loss is theirs; nothing is judged. What differs:
    any text of yours instead of PG-19, loss over tokens and not words, targets right after the prefix, and what
    replaces a token is another token of the same text.
    """

    success_rule: SuccessRule = "none"
    """`none`: the targets' loss is measured, and no response is judged."""
    max_new_tokens: int | None = 1
    """How many tokens are decoded; nothing is made of them."""
    text: str = "templates"
    """Path of a UTF-8 text file; `english`, 77 KB of the King James Version that come with the toolkit (a large model
    knows them by heart); `templates`, sentences of this toolkit's lexicon, has no long-range context to use."""
    targets: int = 64
    """Tokens whose loss is measured, right after the prefix."""
    distant: Literal["kept", "shuffled", "replaced"] = "kept"
    """What is done to the tokens of the prefix that are farther than `near`."""
    near: int = 128
    """Tokens right before the targets that stay as they are."""
    first_token: Literal["kept", "dropped", "moved"] = "kept"
    """What is done to the token that stands first, a special one where the tokenizer adds one: left out, so that the
    prompt is one token shorter, or put at `moved_to`, after those that then come first."""
    moved_to: int = 16
    """Position that the first token is moved to."""

    def check(self) -> None:
        if self.targets < 1 or self.near < 0:
            raise self.error(f"targets must be 1 or more and near 0 or more, not {self.targets} and {self.near}")
        if self.first_token == "moved" and not 0 < self.moved_to < min(self.lengths):
            raise self.error(f"moved_to must lie between 1 and the shortest length, not {self.moved_to}")
        if not self.text:
            raise self.error("text must be templates, english or the path of a text file, not empty")

    def files(self) -> dict[str, str]:
        return {} if self.text in ("templates", "english") else {"text": self.text}

    def build(self, tokenizer: Any, cells: Iterable[Cell] | None = None) -> Iterator[Sample]:
        """Yield a sample for each cell; raises UsageError where the text has too few tokens for the longest."""
        require_offsets(tokenizer)
        text = self._tokens(tokenizer)
        needed = max(self.lengths) + self.targets
        if len(text.tokens) < needed:
            raise self.error(
                f"{Path(self.text).name} has {len(text.tokens)} tokens, and {needed} are needed for a length of "
                f"{max(self.lengths)}"
            )
        if min(self.lengths) <= len(text.before):
            raise self.error(f"{min(self.lengths)} tokens leave no room beside {len(text.before)} special tokens")
        chosen = self.cells() if cells is None else tuple(cells)
        frequent = _frequent(text.tokens)
        return (self._cut(cell, tokenizer, text, frequent) for cell in chosen)

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        text = self._tokens(tokenizer)
        return self._cut(cell, tokenizer, text, _frequent(text.tokens))

    def _tokens(self, tokenizer: Any) -> _Text:
        if self.text == "templates":
            rng = random.Random(f"{self.seed}/{self.name}/templates")
            # A sentence takes three tokens and more in any tokenizer.
            wanted = max(self.lengths) + self.targets * (self.samples + 1)
            text = " ".join(template_sentence(rng) for _ in range(wanted // 3))
        else:
            text = _read(str(ENGLISH) if self.text == "english" else self.text)
        encoded = encode(tokenizer, text)
        starts = [start for start, _ in encoded.offsets[encoded.num_leading :]]
        begins = tuple(at == 0 or text[at].isspace() or text[at - 1].isspace() for at in starts)
        return _Text(encoded.tokens[: encoded.num_leading], encoded.tokens[encoded.num_leading :], begins)

    def _cut(self, cell: Cell, tokenizer: Any, text: _Text, frequent: frozenset[int]) -> Sample:
        before, tokens, _ = text
        # Where the targets begin is the same at every length, and leaves room for the longest prefix.
        first, last = max(self.lengths), len(tokens) - self.targets
        start = first + round((last - first) * (cell.seed + 0.5) / self.samples) if last > first else first
        prefix = list(tokens[start - (cell.length - len(before)) : start])
        due = tokens[start : start + self.targets]
        disturbed = max(0, len(prefix) - self.near) if self.distant != "kept" else 0
        rng = self.rng(cell, self.distant)
        if self.distant == "shuffled":
            prefix[:disturbed] = rng.sample(prefix[:disturbed], disturbed)
        elif self.distant == "replaced":
            prefix[:disturbed] = rng.choices(tokens, k=disturbed)
        first, *others = (*before, *prefix)
        at = {"kept": 0, "moved": self.moved_to, "dropped": None}[self.first_token]
        prompt = tuple(others) if at is None else (*others[:at], first, *others[at:])
        start_of_text = len(before) if at == 0 else 0
        far = max(start_of_text, len(prompt) - min(self.near, len(prefix)))
        spans = [Span("distant", start_of_text, far), Span("near", far, len(prompt))]
        spans += [] if at is None else [Span("first_token", at, at + 1)]
        unknown = getattr(tokenizer, "unk_token_id", None)
        return Sample(
            name=cell.name,
            tokens=prompt,
            spans=tuple(span for span in spans if len(span)),
            answer_tokens=due,
            answer=str(tokenizer.decode(due, clean_up_tokenization_spaces=False)),
            text=str(tokenizer.decode(prompt, clean_up_tokenization_spaces=False)),
            success_rule=self.success_rule,
            max_new_tokens=self.max_new_tokens,
            facts={
                "workload": self.name,
                "length": cell.length,
                "seed": cell.seed,
                "workload_seed": self.seed,
                "text": Path(self.text).name,
                "target_start": start,
                "distant": self.distant,
                "disturbed_tokens": disturbed,
                "first_token": self.first_token,
                "first_token_special": bool(before),
                "near": self.near,
                "target_last_seen": _last_seen(prefix, due),
                "target_frequent": [token in frequent for token in due],
                "target_begins_word": list(text.begins_word[start : start + self.targets]),
                "num_tokens": len(prompt),
                "unknown_tokens": 0.0 if unknown is None else prompt.count(unknown) / len(prompt),
                "stripped_special_tokens": 0,
            },
        )


def _last_seen(prefix: list[int], due: tuple[int, ...]) -> list[int | None]:
    """Return for each target how many tokens back the same token stood last, None where it did not."""
    places = {token: at for at, token in enumerate(prefix)}
    found: list[int | None] = []
    for at, token in enumerate(due, len(prefix)):
        found.append(at - places[token] if token in places else None)
        places[token] = at
    return found


def _frequent(tokens: tuple[int, ...]) -> frozenset[int]:
    """Return the tenth of a text's distinct tokens that stand in it most often, those of smaller id where they tie."""
    counts = Counter(tokens)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return frozenset(ranked[: -(-len(ranked) // 10)])


def _read(path: str) -> str:
    try:
        return _cached(path, Path(path).stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        raise NotAvailable(f"text {path}: {error}") from error


@lru_cache(maxsize=2)
def _cached(path: str, changed_ns: int) -> str:
    check_own_file(path)
    return Path(path).read_text(encoding="utf-8-sig")
