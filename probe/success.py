"""When an answer counts as right: the rule that a sample states, and what it makes of a response."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from probe.sample import Sample

SuccessRule = Literal["exact", "substring", "all", "none"]

RULES: Final[dict[str, str]] = {
    "exact": "exact: the response begins with the answer's tokens",
    "substring": "substring: the response holds an accepted answer, both in small letters, without punctuation and "
    "articles, white space made single (SQuAD's normalisation; best_subspan_em of Liu et al. 2023)",
    "all": "all: the response holds every accepted answer, whatever its case; the score is the share that it holds "
    "(RULER's string_match_all)",
    "none": "",
}
"""Each rule in a sentence, as outcomes and reports say it."""

_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Judgement:
    """What a rule makes of one response."""

    correct: bool | None = None
    """Whether the answer is right; None where nothing was asked or it cannot be told."""
    score: float | None = None
    """Share of the accepted answers that the response holds, under `all`; else 1 or 0; None as for `correct`."""
    rule: str = ""
    """The rule in a sentence; empty where nothing was asked."""


def normalised(text: str) -> str:
    """Return text as SQuAD's evaluation compares it: small letters, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", _PUNCTUATION.sub("", text.lower())).split())


def judge(sample: Sample, response_tokens: Sequence[int], response: str | None) -> Judgement:
    """Judge a response by the sample's rule.

    `response` is the response as text up to the first end-of-sequence token, None for a model without a tokenizer,
    where rules of text say nothing. Under `exact` fewer tokens than the answer has say nothing either.
    """
    rule, answer = RULES[sample.success_rule], list(sample.answer_tokens)
    if not answer or sample.success_rule == "none":
        return Judgement()
    if sample.success_rule == "exact":
        if len(response_tokens) < len(answer):
            return Judgement(rule=rule)
        right = list(response_tokens[: len(answer)]) == answer
        return Judgement(right, float(right), rule)
    if response is None:
        return Judgement(rule=rule)
    accepted = sample.answers or (sample.answer.strip(),)
    if sample.success_rule == "substring":
        held = normalised(response)
        right = any(normalised(each) in held for each in accepted)
        return Judgement(right, float(right), rule)
    found = sum(each.lower() in response.lower() for each in accepted)
    return Judgement(found == len(accepted), found / len(accepted), rule)
