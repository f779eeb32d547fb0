"""Samples: tokens, the spans in them that matter, and the right answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from probe.success import SuccessRule
from probe.withheld import token_ids_from_json, token_ids_to_json


@dataclass(frozen=True)
class Span:
    """A half-open stretch `[start, stop)` of a sample's token positions, made together with the text."""

    name: str
    """What stands there: `needle`, `question`, `answer`, `document_7`."""
    start: int
    """Position of the first token."""
    stop: int
    """Position after the last token."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"span {self.name!r}: start {self.start} and stop {self.stop} do not order")

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Sample:
    """One prompt, as tokens, with its spans and the answer that is right."""

    name: str
    """Unique within a workload's samples and stable between runs, e.g. `needle-256-0.50-s3`."""
    tokens: tuple[int, ...]
    """Token ids of the prompt, special tokens included, answer not included; `Withheld` in a private trace."""
    spans: tuple[Span, ...] = ()
    """Stretches of `tokens` that matter. A span that a condition removed (an absent needle) is not listed."""
    answer_tokens: tuple[int, ...] = ()
    """Token ids of the right answer, as they would follow the prompt; empty where nothing is asked."""
    answer: str = ""
    """The right answer as text."""
    text: str = ""
    """The prompt as text."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the workload knows of the sample (`length`, `needle_depth`, `seed`, …); JSON values only."""
    success_rule: SuccessRule = "exact"
    """When an answer counts as right: `exact` (the response begins with the answer's tokens), `substring` (it holds an
    accepted answer), `all` (it holds every one), `none` (nothing is judged)."""
    answers: tuple[str, ...] = ()
    """Answers that `substring` accepts and `all` looks for; empty means `answer` alone."""
    max_new_tokens: int | None = None
    """How many tokens are decoded; None: as many as the right answer has."""
    distractor_answers: tuple[tuple[int, ...], ...] = ()
    """Token ids of answers that the text offers and that are wrong, as they would follow the prompt (the other needles'
    values); empty where there are none. Left out of a private trace."""

    def span(self, name: str) -> Span:
        """Return the span called `name`; raises `KeyError` naming the spans that exist."""
        for span in self.spans:
            if span.name == name:
                return span
        raise KeyError(f"sample {self.name!r} has no span {name!r}; it has {[s.name for s in self.spans]}")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_new_tokens(self) -> int:
        """How many tokens are decoded: what the sample says, else as many as the right answer has, at least one."""
        return max(1, len(self.answer_tokens)) if self.max_new_tokens is None else self.max_new_tokens

    def to_json(self) -> dict[str, Any]:
        """Return the sample as JSON values; `from_json` turns them back into an equal sample.

        How it is judged is left out where it is the usual, so that a sample of an older trace reads the same.
        """
        judged: dict[str, Any] = {}
        if self.success_rule != "exact":
            judged["success_rule"] = self.success_rule
        if self.answers:
            judged["answers"] = list(self.answers)
        if self.distractor_answers:
            judged["distractor_answers"] = [list(each) for each in self.distractor_answers]
        if self.max_new_tokens is not None:
            judged["max_new_tokens"] = self.max_new_tokens
        return {
            "name": self.name,
            "tokens": token_ids_to_json(self.tokens),
            "spans": [[s.name, s.start, s.stop] for s in self.spans],
            "answer_tokens": token_ids_to_json(self.answer_tokens),
            "answer": self.answer,
            "text": self.text,
            "facts": dict(self.facts),
            **judged,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Sample:
        """Rebuild a sample from `to_json`'s result."""
        return cls(
            name=value["name"],
            tokens=token_ids_from_json(value["tokens"]),
            spans=tuple(Span(name, start, stop) for name, start, stop in value["spans"]),
            answer_tokens=token_ids_from_json(value["answer_tokens"]),
            answer=value["answer"],
            text=value["text"],
            facts=dict(value["facts"]),
            success_rule=value.get("success_rule", "exact"),
            answers=tuple(str(answer) for answer in value.get("answers", ())),
            max_new_tokens=value.get("max_new_tokens"),
            distractor_answers=tuple(tuple(map(int, each)) for each in value.get("distractor_answers", ())),
        )
