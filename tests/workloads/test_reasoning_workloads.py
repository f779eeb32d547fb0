"""Variables, words, threads, ancestors and padded questions: the answer is worked out from the text alone."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
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


@pytest.mark.parametrize(("chains", "hops"), [(1, 4), (3, 2), (1, 0)])
def test_variables_that_hold_the_value_are_the_answer(plain: PreTrainedTokenizerFast, chains: int, hops: int) -> None:
    for sample in samples("variable_tracking", plain, lengths=[900], samples=4, chains=chains, hops=hops):
        values: dict[str, str] = {}
        for name, source in re.findall(r"^VAR ([A-Z]{5}) = (?:VAR )?(\w{5})$", sample.text, flags=re.MULTILINE):
            values[name] = values.get(source, source)
        assert len(values) == chains * (hops + 1)
        asked = re.search(r"assigned the value (\d{5}) in the text above", sample.text)
        assert asked is not None
        assert sample.answers == tuple(name for name, value in values.items() if value == asked[1])
        assert [read(sample, f"needle_value_{at}", plain) for at in range(hops + 1)] == list(sample.answers)
        assert f"{hops + 1} variables are assgined the value {asked[1]}, they are:" in sample.text
        assert len(set(values.values())) == chains


@pytest.mark.parametrize(
    ("length", "counts"), [(8000, (10, 30, 3)), (3900, (10, 6, 1)), (260, None), (400, None), (700, None)]
)
def test_common_words_stand_as_often_as_ruler_has_them(
    plain: PreTrainedTokenizerFast, length: int, counts: tuple[int, int, int] | None
) -> None:
    for sample in samples("common_words", plain, lengths=[length], samples=2):
        entries = re.findall(r"(\d+)\. ([a-z]+-[a-z]+)", sample.text.split("\n")[1])
        assert [int(number) for number, _ in entries] == [*range(1, len(entries) + 1)]
        stand = Counter(word for _, word in entries)
        common, often, seldom = (sample.facts[key] for key in ("num_common", "common_repeats", "uncommon_repeats"))
        assert counts in (None, (common, often, seldom))
        assert {word for word, number in stand.items() if number == often} == set(sample.answers)
        assert {number for word, number in stand.items() if word not in sample.answers} == {seldom}
        assert len(stand) - common == sample.facts["num_uncommon"] >= common
        listed = re.findall(r" (\d+)\. (\S+)", sample.answer)
        assert listed == [(str(at + 1), word) for at, word in enumerate(sample.answers)]
        assert f"What are the {common} most common words in the above list?" in sample.text


def test_counts_of_words_are_stated_together() -> None:
    with pytest.raises(UsageError, match="together or not at all"):
        build("workloads", "common_words", {"num_common": 3})
    with pytest.raises(UsageError, match="more often"):
        build("workloads", "common_words", {"num_common": 3, "common_repeats": 2, "uncommon_repeats": 2})


def test_few_single_words_are_said_to_be_few(plain: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match="words: pairs"):
        samples("common_words", plain, lengths=[8000], samples=1, words="single", num_common=3, common_repeats=3,
                uncommon_repeats=1)  # fmt: skip


@pytest.mark.parametrize("length", [400, 1000, 4096])
def test_frequent_words_follow_zipf(plain: PreTrainedTokenizerFast, length: int) -> None:
    for sample in samples("frequent_words", plain, lengths=[length], samples=3):
        head = "Find the three most frequently appeared coded words. "
        coded = sample.text[sample.text.index(head) + len(head) : sample.text.index("\nQuestion:")].split(" ")
        stand = Counter(coded)
        dots = stand.pop("...")
        assert all(re.fullmatch(r"[a-z]{6}", word) for word in stand)
        ranked = stand.most_common()
        assert [word for word, _ in ranked[:3]] == list(sample.answers)
        assert len(ranked) < 4 or ranked[2][1] > ranked[3][1]
        # ζ(2) = π²/6: some number n gives ⌊n · 6 / (π² k²)⌋ for every rank at once.
        low, high = 0.0, math.inf
        for rank, number in enumerate([dots, *sorted(stand.values(), reverse=True)], 1):
            low = max(low, number * rank**2 * math.pi**2 / 6)
            high = min(high, (number + 1) * rank**2 * math.pi**2 / 6)
        assert math.ceil(low - 1e-6) < high


@pytest.mark.parametrize("direction", ["forward", "backward", "random"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_thread_leads_to_the_answer(plain: PreTrainedTokenizerFast, direction: str, threads: int) -> None:
    for sample in samples("needle_threading", plain, lengths=[3000], steps=[1, 4], samples=3, direction=direction,
                          threads=threads):  # fmt: skip
        head, question = sample.text.split("\nEach value")
        pairs = json.loads(head)
        assert len(pairs) == sample.facts["num_pairs"]
        key = re.search(r'Key: "(.*)"\nCorresponding value:$', question)
        assert key is not None
        steps = [key[1]]
        while steps[-1] in pairs:
            steps.append(pairs[steps[-1]])
        assert len(steps) - 1 == sample.facts["steps"]
        assert sample.answer == f' "{steps[-1]}'
        assert read(sample, "needle_value", plain) == f'"{steps[-1]}'
        at = [list(pairs).index(step) for step in steps[:-1]]
        assert direction == "random" or at == sorted(at, reverse=direction == "backward")
        others = set(pairs) & set(pairs.values())
        assert len(others) == threads * (sample.facts["steps"] - 1)


RELATIVE = r"(?:(?:maternal|paternal) )?(?:grand)?(?:father|mother)|dad|mom"
NAME = r"[A-Z]\w+ [A-Z]\w+"
FORMS = [
    rf"(?P<e>{NAME}) is (?P<y>{NAME})'s (?:{RELATIVE})\.",
    rf"(?P<y>{NAME})'s (?:{RELATIVE}) is (?P<e>{NAME})\.",
    rf"(?P<e>{NAME}), as (?P<y>{NAME})'s (?:{RELATIVE}), has a significant impact on (?P=y)'s upbringing\.",
    rf"(?P<e>{NAME}) is not only (?P<y>{NAME})'s (?:{RELATIVE}) but also (?P=y)'s role model\.",
    rf"(?P<y>{NAME}) is the child of (?P<e>{NAME})\.",
    rf"For (?P<y>{NAME}), (?P<e>{NAME}) is not just a (?:{RELATIVE}), but also a friend\.",
]


@pytest.mark.parametrize(
    "fields", [{}, {"people": 5}, {"people": 5, "order": "backward"}, {"order": "forward"}], ids=str
)
def test_the_eldest_is_the_answer(plain: PreTrainedTokenizerFast, fields: dict[str, Any]) -> None:
    orders = set()
    for sample in samples("ancestral_trace", plain, lengths=[1500], samples=5, **fields):
        story = sample.text.split("\n\n")[1]
        elder: dict[str, str] = {}
        for sentence in re.split(r"(?<=\.) ", story):
            matches = [match for form in FORMS if (match := re.fullmatch(form, sentence))]
            if fields.get("people") is None:
                assert len(matches) == 1
            for match in matches:
                elder[match["y"]] = match["e"]
        assert len(elder) + 1 == sample.facts["num_people"] == fields.get("people", len(elder) + 1)
        asked = re.search(r"eldest relative that '(.*)' can trace back to", sample.text)
        assert asked is not None
        line = [asked[1]]
        while line[-1] in elder:
            line.append(elder[line[-1]])
        assert len(line) == sample.facts["num_people"]
        assert sample.answers == (line[-1],)
        assert read(sample, "needle_value", plain) == line[-1]
        at = [list(elder).index(each) for each in line[:-1]]
        orders.add(tuple(at))
        if fields.get("order") in ("forward", "backward"):
            assert at == sorted(at, reverse=fields["order"] == "backward")
    assert "order" in fields or len(orders) == 5


def test_a_padded_question_is_the_same_at_every_length(plain: PreTrainedTokenizerFast) -> None:
    asked: dict[int, set[str]] = {}
    fields: dict[str, Any] = {"padding": ["duplicate", "similar", "different"], "depths": [0.0, 0.5, 1.0]}
    labels = []
    for sample in samples("padded_question", plain, lengths=[500, 900], distances=[0.0, 0.6], samples=8, **fields):
        question = sample.text.split("\n")[-3]
        first = sample.text.split("\n")[0]
        assert first == (
            f"Here are some facts. Answer the exact following question based on the text: {question} "
            "Answer the question as it appears exactly."
        )
        match = re.fullmatch(rf"Is ({NAME}) (\w+) than ({NAME})\?", question)
        assert match is not None
        more = dict(
            re.findall(rf"({NAME}) is {match[2]} than ({NAME})\.", f"{read(sample, 'needle_fact_0', plain)} "
                       f"{read(sample, 'needle_fact_1', plain)}")
        )  # fmt: skip
        true = more.get(more.get(match[1], "")) == match[3]
        false = more.get(more.get(match[3], "")) == match[1]
        assert true != false
        assert sample.answer == f" {true}"
        asked.setdefault(sample.facts["question"], set()).add(question)
        labels.append((true, sample.facts["seed"] % 2))
        facts = [sample.span(f"needle_{at}").start for at in range(2)]
        assert facts[0] < facts[1]
        if sample.facts["distance"] == 0 and sample.facts["padding"] == "different":
            assert sample.span("needle_0").stop == sample.span("needle_1").start
    assert all(len(questions) == 1 for questions in asked.values())
    assert len(set.union(*asked.values())) == 8
    # Each half of the samples has as many true as false ones.
    assert len(set(Counter(labels).values())) == 1
    assert len(Counter(labels)) == 4


def test_facts_stand_where_they_are_asked_to(plain: PreTrainedTokenizerFast) -> None:
    for sample in samples("padded_question", plain, lengths=[4000], depths=[0.0, 0.5, 1.0], distances=[0.0, 0.4, 1.0],
                          samples=1):  # fmt: skip
        first, second = (sample.span(f"needle_{at}") for at in range(2))
        begin = sample.span("question_before").stop + 10
        padding = sample.span("question").start - begin - len(first) - len(second)
        depth, distance = sample.facts["needle_depth"], sample.facts["distance"]
        assert (first.start - begin) / padding == pytest.approx(depth * (1 - distance), abs=0.02)
        assert (second.start - first.stop) / padding == pytest.approx(distance, abs=0.02)
