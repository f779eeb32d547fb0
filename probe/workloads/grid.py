"""A grid of samples: every length with every value of the other axes, each some number of times."""

from __future__ import annotations

import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

from probe.errors import UsageError
from probe.sample import Sample
from probe.success import SuccessRule
from probe.withheld import MOST_TOKENS
from probe.workloads.asking import asked
from probe.workloads.chat_text import Chat, in_chat
from probe.workloads.marked_text import MarkedText, require_offsets


class Cell(NamedTuple):
    """Where one sample stands in its grid."""

    workload: str
    """Name of the workload."""
    length: int
    """Length that is asked for, in tokens of the prompt."""
    at: tuple[tuple[str, float | int | str], ...]
    """The other axes: name of the fact, and its value."""
    seed: int
    """Index of the sample in its cell, from 0."""

    @property
    def name(self) -> str:
        """The sample's name, the same under every condition."""
        return "-".join([self.workload, str(self.length), *(_short(value) for _, value in self.at), f"s{self.seed}"])

    def value(self, axis: str) -> Any:
        """Return where the cell stands on an axis."""
        return dict(self.at)[axis]


def _short(value: float | int | str) -> str:
    """Return a value as a part of a name; of a path the file's name, in letters that any file may be called."""
    if isinstance(value, str):
        return re.sub(r"[^\w.]+", "_", Path(value).name)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


MOST_CELLS: Final = 100_000
"""No workload makes more samples."""


def beyond(lengths: Sequence[int], axes: Iterable[Sequence[Any]], samples: int, new_tokens: int | None) -> str | None:
    """Return why a grid is larger than any that could be read, found before anything of its size is made; else None."""
    longest = max(max(lengths), new_tokens or 0)
    if longest > MOST_TOKENS:
        return f"{longest} tokens are more than {MOST_TOKENS:,}, the most of any prompt"
    cells = len(lengths) * samples * math.prod(map(len, axes))
    return (
        f"{cells} samples in all are more than {MOST_CELLS:,}, the most of a workload" if cells > MOST_CELLS else None
    )


@dataclass(frozen=True)
class Grid(ABC):
    """What the workloads of this room share: their lengths, samples and seed, and how an answer is judged.

    A workload gives its `axes` besides the length, and makes one `sample` for a cell. A sample depends on the seed and
    its cell alone, so a grid may be cut in any way.
    """

    lengths: tuple[int, ...] = (256, 512, 1024)
    """Prompt lengths in tokens, special tokens included; never exceeded, and met to within one item of the text."""
    samples: int = 8
    """Samples for each place of the grid."""
    seed: int = 0
    """Another seed gives another text and another answer in every cell."""
    success_rule: SuccessRule = "exact"
    """`exact`, `substring`, `all` or `none`: when an answer counts as right (probe.success)."""
    max_new_tokens: int | None = None
    """How many tokens are decoded. None: as many as the answer has, and 16 more where it is looked for in the text."""
    chat: Chat = "never"
    """Whether the prompt is put into the tokenizer's chat template: `never`, `always`, or `auto` (where it has one, and
    the workload's question can be put to somebody). The last words begin the assistant's turn; lengths include the
    template's tokens."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        if not self.lengths or any(length < 1 for length in self.lengths):
            raise self.error(f"lengths must be positive numbers of tokens, not {list(self.lengths)}")
        if self.samples < 1:
            raise self.error(f"samples must be 1 or more, not {self.samples}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise self.error(f"max_new_tokens must be 1 or more, not {self.max_new_tokens}")
        if self.chat == "always" and not self.cue():
            raise self.error("what it asks has no words that could begin an answer in a chat")
        self.check()
        if why := beyond(self.lengths, self.axes().values(), self.num_samples(), self.max_new_tokens):
            raise self.error(why)
        # Cells differ in their names where each axis' values do.
        if any(len({*map(_short, values)}) < len(values) for values in (self.lengths, *self.axes().values())):
            raise self.error(
                f"lengths and {', '.join(self.axes()) or 'samples'} must differ from each other, in two decimals"
            )

    @property
    def name(self) -> str:
        """The workload's name in casebooks."""
        return type(self).__name__

    def error(self, message: str) -> UsageError:
        """Return an error that names the workload."""
        return UsageError(f"{self.name}: {message}")

    def check(self) -> None:  # noqa: B027 (a workload without further fields has nothing to check)
        """Raise UsageError where the workload's own fields cannot be."""

    def check_shares(self, name: str, values: tuple[float, ...]) -> None:
        """Raise UsageError where a field's values are not shares."""
        if not values or not all(0 <= value <= 1 for value in values):
            raise self.error(f"{name} must lie between 0 and 1, not {list(values)}")

    def axes(self) -> Mapping[str, tuple[float | int | str, ...]]:
        """Return the grid's axes besides the length, by the name of the fact that says where a sample stands."""
        return {}

    def cue(self) -> str:
        """Return what begins the assistant's turn in a chat, as its last place in a prompt; empty: no chat."""
        return ""

    def num_samples(self) -> int:
        """Return how many samples each place of the grid has."""
        return self.samples

    def files(self) -> Mapping[str, str]:
        """Return the files and folders that the texts come from, by the name of the field."""
        haystack = getattr(self, "haystack", None)
        return {} if haystack in (None, "templates", "noise", "needles", "none") else {"haystack": str(haystack)}

    def prepare(self, tokenizer: Any) -> None:  # noqa: B027 (most have nothing to prepare)
        """Raise what is wrong with the workload's files, or with the tokenizer, before the first sample."""

    @abstractmethod
    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        """Make the sample of a cell."""

    def cells(self) -> tuple[Cell, ...]:
        """Return the grid's cells, by length, by the other axes, by sample; needs no tokenizer."""
        axes = self.axes()
        return tuple(
            Cell(self.name, length, tuple(zip(axes, values, strict=True)), index)
            for length in self.lengths
            for values in product(*axes.values())
            for index in range(self.num_samples())
        )

    def build(self, tokenizer: Any, cells: Iterable[Cell] | None = None) -> Iterator[Sample]:
        """Yield a sample for each cell (all of them, or those given), for a fast Hugging Face tokenizer.

        Raises UsageError where a cell's text does not fit its length, naming the least that holds it, where the answer
        does not survive tokenisation, or where the tokenizer knows no offsets; NotAvailable for a file that cannot be
        read.
        """
        require_offsets(tokenizer)
        self.prepare(tokenizer)
        if cue := self.cue():
            tokenizer = in_chat(tokenizer, self.chat, lambda text: text.rindex(cue))
        return (self.sample(cell, tokenizer) for cell in (self.cells() if cells is None else tuple(cells)))

    def rng(self, cell: Cell, purpose: str) -> random.Random:
        """Return the generator that draws one thing of a cell, the same under every condition."""
        return random.Random(f"{self.seed}/{cell.name}/{purpose}")

    def made(
        self,
        cell: Cell,
        text: MarkedText,
        tokenizer: Any,
        *,
        answer: str = "",
        accepted: tuple[str, ...] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> Sample:
        """Return the sample of a text and its answer, with the facts that every workload states."""
        return asked(
            cell.name,
            text,
            tokenizer,
            answer=answer,
            accepted=accepted,
            success_rule=self.success_rule,
            max_new_tokens=self.max_new_tokens,
            facts={
                "workload": self.name,
                "length": cell.length,
                **dict(cell.at),
                "seed": cell.seed,
                "workload_seed": self.seed,
                **(facts or {}),
            },
        )
