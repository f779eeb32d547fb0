"""The value of one key in a long JSON object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from probe.sample import Sample
from probe.success import SuccessRule
from probe.workloads.fitting import fit, within
from probe.workloads.grid import Cell, Grid
from probe.workloads.marked_text import MarkedText
from probe.workloads.names import Kind, kind_for, values
from probe.workloads.stretches import Stretch, stretch, written

_INSTRUCTION = "Extract the value corresponding to the specified key in the JSON object below."


@dataclass(frozen=True)
class key_values(Grid):
    """Key-value retrieval: a JSON object of UUID pairs, one of whose values is asked for.

    The prompt of Liu et al. 2023 (Lost in the Middle, arXiv 2307.03172), with its query-aware variant. What differs:
    as many pairs as the length holds (the paper: 75, 140 and 300), and what is decoded are the value's tokens and 16
    more (the paper: 100). The answer begins with the quotation mark that the object has before the value.
    """

    success_rule: SuccessRule = "substring"
    """`substring` as the paper has it, or `exact`."""
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Place of the asked pair: its index is this share of the last index, rounded."""
    pairs: int | None = None
    """Exactly as many pairs, where the length holds them. None: as many as it holds."""
    kind: Kind | None = None
    """What keys and values are: `uuids` as the paper has them, `numbers` (7 digits) or `words` (`amber-anchor`). None:
    numbers below 512 tokens, which hold too few UUIDs, else UUIDs."""
    query_aware: bool = False
    """Whether the key stands before the object too."""
    given: Literal["all", "gold_only", "gold_absent"] = "all"
    """`gold_only` leaves the other pairs out, `gold_absent` the asked one (another stands in its place)."""

    def check(self) -> None:
        self.check_shares("depths", self.depths)
        if self.pairs is not None and self.pairs < 2:
            raise self.error(f"pairs must be 2 or more, not {self.pairs}")

    def axes(self) -> dict[str, tuple[float | int | str, ...]]:
        return {"needle_depth": tuple(map(float, self.depths))}

    def cue(self) -> str:
        return "Corresponding value:"

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        kind = kind_for(self.kind, cell.length)
        key, value = values(self.rng(cell, "asked"), kind).first(2)
        others = values(self.rng(cell, "others"), kind, without=(key, value))

        def index(count: int) -> int:
            return round(float(cell.value("needle_depth")) * (count - 1))

        def compose(count: int) -> MarkedText:
            # The pair that stands in for an absent gold pair comes first, so that the others stay the same.
            names = others.first(2 * count)
            pairs = list(zip(names[::2], names[1::2], strict=True))
            gold = _pair(*pairs[0]) if self.given == "gold_absent" else _gold(key, value)
            rows: list[str | Stretch] = [_pair(*each) for each in pairs[1:]]
            return self._prompt(key, [*rows[: index(count)], gold, *rows[index(count) :]])

        what = f"{self.name}: the question with {self.pairs or 'two'} pairs"
        if self.given == "gold_only":
            count, text = 1, within(compose(1), cell.length, tokenizer, what=what)
        elif self.pairs is not None:
            count, text = self.pairs, within(compose(self.pairs), cell.length, tokenizer, what=what)
        else:
            # From two pairs on the place says something.
            count, text = fit(compose, cell.length, tokenizer, what=what, least=2)
        return self.made(
            cell,
            text,
            tokenizer,
            answer=f' "{value}',
            accepted=(value,),
            facts={"given": self.given, "kind": kind, "num_pairs": count, "gold_index": index(count)},
        )

    def _prompt(self, key: str, rows: list[str | Stretch]) -> MarkedText:
        between = [part for row in rows for part in (",\n ", row)][1:]
        before: list[str | Stretch] = ["\n\n", stretch("question_before", f'Key: "{key}"')] if self.query_aware else []
        return written(
            stretch("instruction", _INSTRUCTION),
            *before,
            "\n\nJSON data:\n",
            stretch("context", "{", *between, "}"),
            "\n\n",
            stretch("question", f'Key: "{key}"\nCorresponding value:'),
        )


def _pair(key: str, value: str) -> str:
    return f'"{key}": "{value}"'


def _gold(key: str, value: str) -> Stretch:
    return stretch("needle", '"', stretch("needle_key", key), '": ', stretch("needle_value", f'"{value}'), '"')
