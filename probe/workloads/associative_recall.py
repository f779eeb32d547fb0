"""Pairs of tokens, and one of each asked for again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from probe.sample import Sample, Span
from probe.workloads.grid import Cell, Grid
from probe.workloads.marked_text import encode

_MOST_MARKED = 64


@dataclass(frozen=True)
class associative_recall(Grid):
    """Multi-query associative recall: keys and values, a token each, then every key again, whose value is due.

    After Arora et al. 2023 (Zoology, arXiv 2312.04927): distinct keys from one half of the vocabulary and distinct
    values from the other, each key once more in a slot of the rest of the text, the slots drawn without replacement
    with probability ∝ slot^(power − 1). What differs: the tokens are drawn from the model's own vocabulary, the last
    slot is always one of the queries, which is the prompt's end, the other queries are followed by their values (in
    the paper's data a random token follows; `answers: filler`), and no key fills a slot that asks nothing. `ages` puts
    filler before the pairs, so that what was just read can be told from what is long ago: this toolkit's own. Tokens,
    not text: what is in `text` is how they read.
    """

    lengths: tuple[int, ...] = (64, 128, 256)
    """Prompt lengths in tokens, special tokens included; never exceeded, and met to within one token."""
    pairs: int | None = None
    """How many pairs there are; each takes four tokens. None: one for each 16 tokens of the length, and no more than
    one for each 8 tokens of the vocabulary."""
    vocabulary: int = 8192
    """Number of different tokens that keys, values and filler are drawn from; fewer where the tokenizer has fewer."""
    power: float = 0.01
    """Exponent of the slots' distribution: 1 draws them alike, less prefers those near the pairs."""
    answers: Literal["given", "filler"] = "given"
    """What follows the queries before the last: their values, so that each one's loss can be read, or filler."""
    ages: tuple[int, ...] = (0,)
    """How many of the prompt's last tokens begin with the first pair; before them stands filler. 0: all of them."""
    given: Literal["all", "gold_only"] = "all"
    """`gold_only` leaves out what stands before the first pair, and changes nothing else."""

    def check(self) -> None:
        if self.pairs is not None and self.pairs < 1:
            raise self.error(f"pairs must be 1 or more, not {self.pairs}")
        if self.vocabulary < 8 or not 0 < self.power <= 1:
            raise self.error("vocabulary must be 8 or more, and power lie above 0 and at most at 1")
        if not self.ages or not all(0 <= age <= min(self.lengths) for age in self.ages):
            raise self.error(f"ages must lie between 0 and the shortest length, not {list(self.ages)}")

    def axes(self) -> dict[str, tuple[float | int | str, ...]]:
        return {} if self.ages == (0,) else {"pairs_age": self.ages}

    def sample(self, cell: Cell, tokenizer: Any) -> Sample:
        leading = encode(tokenizer, "a")
        before = leading.tokens[: leading.num_leading]
        rng = self.rng(cell, "tokens")
        words = self._words(rng, tokenizer)
        num_pairs = self.pairs or max(1, min(cell.length // 16, len(words) // 8))
        if len(words) < 2 * num_pairs + 2:
            raise self.error(f"{num_pairs} pairs need {2 * num_pairs + 2} different tokens, and there are {len(words)}")
        whole = cell.length - len(before)
        age = 0 if self.ages == (0,) else int(cell.value("pairs_age"))
        within = min(age or whole, whole)
        # The last query's value is the answer, and no part of the prompt.
        slots = (within + 1) // 2 - num_pairs
        if slots < num_pairs:
            raise self.error(
                f"{num_pairs} pairs, each asked for again, take {4 * num_pairs - 1 + len(before)} tokens and do not "
                f"fit into {within + len(before)}"
            )
        half = len(words) // 2
        keys, values = words[:half][:num_pairs], words[half:][:num_pairs]
        filler = [*words[num_pairs:half], *words[half:]]
        order = rng.sample(range(num_pairs), num_pairs)
        asked, others = order[0], order[1:]
        body = [token for pair in zip(keys, values, strict=True) for token in pair]
        body += [rng.choice(filler) for _ in range(2 * slots - 1)]
        queries: list[tuple[int, int]] = []
        for slot, pair in zip(_slots(rng, slots - 1, len(others), self.power), others, strict=True):
            queries.append((2 * num_pairs + 2 * slot, pair))
        queries.append((2 * (num_pairs + slots - 1), asked))
        for at, pair in queries:
            body[at] = keys[pair]
            if self.answers == "given" and at + 1 < len(body):
                body[at + 1] = values[pair]
        queries.sort()
        if self.given == "all":
            earlier = self.rng(cell, "earlier")
            before = (*before, *(earlier.choice(filler) for _ in range(whole - within)))
        return self._made(cell, tokenizer, before, body, queries, (keys, values))

    def _words(self, rng: random.Random, tokenizer: Any) -> list[int]:
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        known = sorted({int(token) for token in tokenizer.get_vocab().values()} - special)
        return rng.sample(known, min(self.vocabulary, len(known)))

    def _made(
        self,
        cell: Cell,
        tokenizer: Any,
        before: tuple[int, ...],
        body: list[int],
        queries: list[tuple[int, int]],
        pairs: tuple[list[int], list[int]],
    ) -> Sample:
        keys, values = pairs
        first = len(before)
        asked = queries[-1][1]
        spans = [
            Span("needle", first + 2 * asked, first + 2 * asked + 2),
            Span("needle_value", first + 2 * asked + 1, first + 2 * asked + 2),
            *(Span(f"query_{i}", first + at, first + at + 1) for i, (at, _) in enumerate(queries[:-1][:_MOST_MARKED])),
            Span("question", first + len(body) - 1, first + len(body)),
        ]
        tokens = (*before, *body)
        return Sample(
            name=cell.name,
            tokens=tokens,
            spans=tuple(spans),
            answer_tokens=(values[asked],),
            answer=str(tokenizer.decode([values[asked]])),
            text=str(tokenizer.decode(list(tokens))),
            success_rule=self.success_rule,
            max_new_tokens=self.max_new_tokens,
            facts={
                "workload": self.name,
                "length": cell.length,
                **dict(cell.at),
                "given": self.given,
                "age_tokens": len(body) - 1 - (2 * asked + 1),
                "needle_depth": asked / (len(keys) - 1) if len(keys) > 1 else 0.0,
                "seed": cell.seed,
                "workload_seed": self.seed,
                "num_pairs": len(keys),
                "answers": self.answers,
                "query_positions": [first + at for at, _ in queries],
                "source_positions": [first + 2 * pair + 1 for _, pair in queries],
                "num_tokens": len(tokens),
                "unknown_tokens": 0.0,
                "stripped_special_tokens": 0,
            },
        )


def _slots(rng: random.Random, number: int, count: int, power: float) -> list[int]:
    """Draw `count` of `number` slots without replacement, slot g with probability ∝ (g + 1)^(power − 1).

    By Gumbel's keys: the largest of log weight plus noise are a draw without replacement, one after another.
    """
    uniform = np.array([rng.random() for _ in range(number)])
    keys = (power - 1) * np.log(np.arange(1, number + 1)) - np.log(-np.log(uniform))
    return [int(slot) for slot in np.argsort(-keys)[:count]]
