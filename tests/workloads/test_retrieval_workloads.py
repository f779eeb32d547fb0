"""Passkeys, pairs, needles and documents: what the text says is what is asked, read back independently."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from probe.casebook import build
from probe.errors import UsageError
from probe.sample import Sample


def samples(name: str, tokenizer: Any, **fields: Any) -> list[Sample]:
    return list(build("workloads", name, fields).build(tokenizer))


def read(sample: Sample, name: str, tokenizer: Any) -> str:
    span = sample.span(name)
    return str(tokenizer.decode(sample.tokens[span.start : span.stop])).strip()


@pytest.mark.parametrize(("form", "word"), [("landmark", "pass key"), ("state", "passkey")])
def test_a_passkey_reads_as_published(plain: PreTrainedTokenizerFast, form: str, word: str) -> None:
    for sample in samples("passkey", plain, lengths=[600], depths=[0.0, 0.4, 1.0], samples=3, form=form):
        key = sample.answer.strip()
        instruction, *noise, question = sample.text.split("\n")
        assert re.fullmatch(r"[1-9]\d{4}", key)
        assert instruction.startswith("There is an important info hidden inside a lot of irrelevant text. Find it and")
        assert question == f"What is the pass key? The {word} is"
        needle = f"The {word} is {key}. Remember it. {key} is the {word}."
        assert read(sample, "needle", plain) == needle
        assert read(sample, "needle_value", plain) == read(sample, "needle_value_again", plain) == key
        before, after = (" ".join(noise)).split(needle)
        cycle = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
        assert (cycle * 99).startswith(" ".join(before.split() + after.split()) + " ")
        unit = 1 if form == "landmark" else 5
        sentences = [before.count("."), after.count(".")]
        assert sum(sentences) == sample.facts["noise_sentences"]
        assert sentences[0] == unit * round(sample.facts["needle_depth"] * sum(sentences) / unit)
        assert sample.text.count("\n") == (sum(sentences) / 5 + 3 if form == "state" else len(noise) + 1)
        assert ("\n\nWhat is" in sample.text) == (form == "state")


def test_key_values_read_as_published(plain: PreTrainedTokenizerFast) -> None:
    for sample in samples("key_values", plain, lengths=[2500], depths=[0.0, 0.5, 1.0], samples=2):
        match = re.fullmatch(
            r"Extract the value corresponding to the specified key in the JSON object below\.\n\n"
            r'JSON data:\n(\{.*\})\n\nKey: "(.*)"\nCorresponding value:',
            sample.text,
            flags=re.DOTALL,
        )
        assert match is not None
        pairs = json.loads(match[1])
        assert match[1] == "{" + ",\n ".join(f'"{key}": "{value}"' for key, value in pairs.items()) + "}"
        assert len(pairs) == sample.facts["num_pairs"] > 5
        assert list(pairs).index(match[2]) == round(sample.facts["needle_depth"] * (len(pairs) - 1))
        assert list(pairs).index(match[2]) == sample.facts["gold_index"]
        assert sample.answers == (pairs[match[2]],)
        assert sample.answer == f' "{pairs[match[2]]}'
        assert read(sample, "needle_value", plain) == f'"{pairs[match[2]]}'
        assert read(sample, "needle_key", plain) == match[2]
        span = sample.span("needle_value")
        assert sample.tokens[span.start : span.stop] == sample.answer_tokens
        for part in (*pairs, *pairs.values()):
            assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", part)


def test_the_query_aware_variant_says_the_key_first(plain: PreTrainedTokenizerFast) -> None:
    (sample,) = samples("key_values", plain, lengths=[900], depths=[0.5], samples=1, query_aware=True, pairs=3)
    key = read(sample, "needle_key", plain)
    head, tail = sample.text.split("\n\nJSON data:\n")
    assert head == (f'Extract the value corresponding to the specified key in the JSON object below.\n\nKey: "{key}"')
    assert tail.endswith(f'\n\nKey: "{key}"\nCorresponding value:')
    assert sample.facts["num_pairs"] == tail.count('": "') == 3


@pytest.mark.parametrize("kind", ["words", "numbers"])
def test_short_keys_fit_short_lengths(plain: PreTrainedTokenizerFast, kind: str) -> None:
    (sample,) = samples("key_values", plain, lengths=[160], depths=[0.5], samples=1, kind=kind)
    assert sample.facts["num_pairs"] >= 2


@pytest.mark.parametrize(
    ("fields", "needles", "asked"),
    [
        ({"keys": 1}, 1, 1),
        ({}, 4, 1),
        ({"keys": 1, "values": 4}, 4, 4),
        ({"keys": 4, "queries": 4}, 4, 4),
        ({"keys": 3, "values": 2, "queries": 2}, 6, 4),
    ],
)
def test_needles_hold_every_value_that_is_asked_for(
    plain: PreTrainedTokenizerFast, fields: dict[str, int], needles: int, asked: int
) -> None:
    places = set()
    for sample in samples("needles", plain, lengths=[900], samples=6, **fields):
        found = re.findall(r"One of the special magic numbers for ([a-z]+-[a-z]+) is: (\d{7})\.", sample.text)
        assert len(found) == len(set(found)) == needles == sample.facts["num_needles"]
        question = sample.text.split("\n")[-1]
        if asked == 1:
            form = (
                r"What is the special magic number for (.*) mentioned in the provided text\? The special magic number "
            )
            form += r"for \1 mentioned in the provided text is"
        else:
            form = (
                r"What are all the special magic numbers for (.*) mentioned in the provided text\? The special magic "
            )
            form += r"numbers for \1 mentioned in the provided text are"
        match = re.fullmatch(form, question)
        assert match is not None
        queried = re.split(r", and |, ", match[1])
        expected = [value for key in queried for known, value in found if known == key]
        assert sample.answers == tuple(expected)
        assert len(expected) == asked
        assert sample.answer == " " + ", ".join(expected)
        golds = ["needle_value"] if asked == 1 else [f"needle_value_{at}" for at in range(asked)]
        assert [read(sample, gold, plain) for gold in golds] == expected
        places |= {sample.span(gold).start * 10 // len(sample.tokens) for gold in golds}
    assert len(places) > 2


def test_line_retrieval_is_needles_all_through(plain: PreTrainedTokenizerFast) -> None:
    fields = {"keys": 1, "haystack": "needles", "key_kind": "uuids", "value_kind": "uuids", "depths": [0.5]}
    (sample,) = samples("needles", plain, lengths=[3000], samples=1, **fields)
    lines = sample.text.split("\n")
    assert all(line.startswith("One of the special magic uuids for ") for line in lines[1:-1])
    at = next(at for at, line in enumerate(lines[1:-1]) if sample.answers[0] in line)
    assert at == round(0.5 * (len(lines) - 3))


def test_needles_that_cannot_be_are_refused() -> None:
    for fields in ({"keys": 1, "queries": 2}, {"values": 2, "depths": [0.5]}, {"keys": 0}, {"depths": [2.0]}):
        with pytest.raises(UsageError, match="needles: "):
            build("workloads", "needles", fields)


DOCUMENT = re.compile(r"Document \[(\d+)\]\(Title: ([A-Z]\w+ [A-Z]\w+)\) (.*)")


@pytest.mark.parametrize("distractors", ["related", "random"])
def test_one_document_alone_answers(plain: PreTrainedTokenizerFast, distractors: str) -> None:
    depths = [0.0, 0.21, 0.47, 0.74, 1.0]
    fields: dict[str, Any] = {"depths": depths, "num_documents": 20, "samples": 2, "distractors": distractors}
    indices = []
    for sample in samples("documents", plain, lengths=[3000], **fields):
        instruction, empty, *documents, between, question, answer = sample.text.split("\n")
        assert instruction.startswith("Write a high-quality answer for the given question using only the provided")
        assert (empty, between, answer, len(documents)) == ("", "", "Answer:", 20)
        found = [DOCUMENT.fullmatch(document) for document in documents]
        assert [int(match[1]) for match in found if match] == [*range(1, 21)]
        asked = re.fullmatch(r"Question: who (\w+) the (.*)\?", question)
        assert asked is not None
        facts = {match[2]: match[3] for match in found if match}
        assert len(facts) == 20
        (name,) = re.findall(rf"The {asked[2]} was {asked[1]} by (\w+ \w+)\.", facts[asked[2]])
        assert sample.answers == (name,)
        assert sample.text.count(name) == 1
        gold = list(facts).index(asked[2])
        assert gold == sample.facts["gold_index"]
        indices.append(gold)
        assert read(sample, "needle_value", plain) == name
        assert read(sample, "needle", plain) == read(sample, f"document_{gold}", plain) == documents[gold]
        assert [read(sample, f"document_{at}", plain) for at in range(20)] == documents
        kinds = {title.split()[1] for at, title in enumerate(facts) if at != gold}
        assert (kinds == {asked[2].split()[1]}) == (distractors == "related")
    # The positions of the paper's figure, from 0.
    assert indices[::2] == [0, 4, 9, 14, 19]


@pytest.mark.parametrize(("prompt", "there"), [("query_aware", 2), ("random_order", 1), ("plain", 1)])
def test_a_prompt_may_say_the_question_first(plain: PreTrainedTokenizerFast, prompt: str, there: int) -> None:
    (sample,) = samples("documents", plain, lengths=[800], depths=[0.5], samples=1, prompt=prompt)
    assert sample.text.count("Question: who") == there
    assert ("The search results are ordered randomly." in sample.text) == (prompt == "random_order")


def test_closed_book_is_the_question_alone(plain: PreTrainedTokenizerFast) -> None:
    (sample,) = samples("documents", plain, lengths=[800], depths=[0.5], samples=1, given="closed_book")
    assert re.fullmatch(r"Question: who \w+ the \w+ \w+\?\nAnswer:", sample.text)


def test_dummies_are_about_as_long_and_say_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    fields: dict[str, Any] = {"lengths": [2400], "depths": [0.5], "samples": 6, "num_documents": 5}
    whole, dummy, same = (
        samples("documents", tokenizer, given=given, **fields) for given in ("all", "gold_dummy", "all_dummies")
    )
    differences = []
    for there, one, every in zip(whole, dummy, same, strict=True):
        name = there.answers[0]
        assert name not in one.text + every.text
        assert len(one.tokens) <= len(there.tokens)
        differences.append(1 - len(one.span("dummy")) / len(there.span("needle")))
        others = [span.name for span in there.spans if span.name.startswith("document") and span.name != "document_2"]
        for other in others:
            assert read(there, other, tokenizer) == read(one, other, tokenizer)
        texts = {re.sub(r"^Document \[\d\]", "", read(every, f"document_{at}", tokenizer)) for at in range(5)}
        assert len(texts) == 1
    assert 0 <= sum(differences) / len(differences) < 0.05


def test_a_long_prompt_has_no_more_than_a_hundred_documents(plain: PreTrainedTokenizerFast) -> None:
    (sample,) = samples("documents", plain, lengths=[12_000], depths=[1.0], samples=1)
    assert sample.facts["num_documents"] == 100
    assert sample.facts["gold_index"] == 99


@pytest.mark.parametrize(("rule", "decoded"), [("exact", None), ("substring", 16)])
def test_a_needle_may_be_looked_for_in_the_response(
    plain: PreTrainedTokenizerFast, rule: str, decoded: int | None
) -> None:
    (sample,) = samples("needle", plain, lengths=[256], depths=[0.5], samples=1, success_rule=rule)
    assert sample.success_rule == rule
    assert sample.answers == (() if rule == "exact" else (sample.answer.strip(),))
    assert sample.max_new_tokens == (None if decoded is None else len(sample.answer_tokens) + decoded)
