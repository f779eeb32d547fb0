"""When an answer counts as right is what the sample says, and what the papers' own scoring says."""

from __future__ import annotations

import dataclasses
import json

import pytest

from probe.private import withheld_sample
from probe.sample import Sample
from probe.success import RULES, SuccessRule, judge, normalised
from probe.token_text import until_the_end

ASKED = Sample("s", (1, 2), answer_tokens=(7, 8), answer=" Mira Talbot")


def sample(rule: SuccessRule, *answers: str) -> Sample:
    return dataclasses.replace(ASKED, success_rule=rule, answers=answers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # SQuAD's evaluation: small letters, no punctuation, no articles, single spaces.
        ("The  Eiffel-Tower!", "eiffeltower"),
        ("a cat and an apple", "cat and apple"),
        ("Theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("a an the", ""),
    ],
)
def test_text_is_normalised_as_for_squad(text: str, expected: str) -> None:
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("rule", "answers", "tokens", "response", "correct", "score"),
    [
        ("exact", (), (7, 8), "", True, 1.0),
        ("exact", (), (7, 8, 9), "", True, 1.0),
        ("exact", (), (8, 7), "Mira Talbot", False, 0.0),
        ("exact", (), (7,), "", None, None),
        ("substring", (), (1,), "It was the Mira  Talbot.", True, 1.0),
        ("substring", (), (1,), "mira, talbot", True, 1.0),
        ("substring", (), (1,), "Mira", False, 0.0),
        ("substring", ("nobody", "The Hague"), (1,), "in hague", True, 1.0),
        ("all", ("amber", "Brook", "clover", "dune"), (1,), "AMBER, brook; dunes", False, 0.75),
        ("all", ("amber", "Brook"), (1,), "brook amber", True, 1.0),
        ("all", ("4.5",), (1,), "45", False, 0.0),
        ("none", (), (7, 8), "", None, None),
        ("substring", (), (1,), None, None, None),
    ],
)
def test_each_rule_judges_by_its_paper(
    rule: SuccessRule,
    answers: tuple[str, ...],
    tokens: tuple[int, ...],
    response: str | None,
    correct: bool | None,
    score: float | None,
) -> None:
    judged = judge(sample(rule, *answers), tokens, response)
    assert (judged.correct, judged.score) == (correct, score)
    assert judged.rule == RULES[rule]


def test_nothing_asked_is_not_judged() -> None:
    assert judge(Sample("s", (1,)), (1,), "x").correct is None
    assert judge(Sample("s", (1,)), (1,), "x").rule == ""


def test_an_old_sample_reads_as_exact_and_a_new_one_comes_back_equal() -> None:
    old = ASKED.to_json()
    assert not {"success_rule", "answers", "max_new_tokens"} & set(old)
    assert Sample.from_json(json.loads(json.dumps(old))) == ASKED
    new = dataclasses.replace(sample("all", "a", "b"), max_new_tokens=30)
    assert Sample.from_json(json.loads(json.dumps(new.to_json()))) == new
    assert (ASKED.num_new_tokens, new.num_new_tokens, Sample("s", (1,)).num_new_tokens) == (2, 30, 1)


def test_a_private_sample_keeps_the_rule_and_no_answer() -> None:
    kept = withheld_sample(dataclasses.replace(sample("substring", "Mira Talbot"), max_new_tokens=5))
    assert (kept.success_rule, kept.answers, kept.max_new_tokens) == ("substring", (), 5)
    assert "Mira" not in json.dumps(kept.to_json())


class Tokenizer:
    eos_token_id = 2

    def decode(self, token_ids: list[int], **_: bool) -> str:
        return " ".join(map(str, token_ids))


@pytest.mark.parametrize(("tokens", "text"), [([5, 6, 2, 7], "5 6"), ([5, 6], "5 6"), ([2], ""), ([], "")])
def test_an_answer_ends_with_the_end_of_the_sequence(tokens: list[int], text: str) -> None:
    assert until_the_end(Tokenizer(), tokens) == text
