from __future__ import annotations

from typing import Any

import pytest

from probe.casebook import build
from probe.errors import UsageError
from probe.success import judge


def samples(tokenizer: Any, **fields: Any) -> list[Any]:
    return list(
        build("workloads", "long_answer", {"lengths": [900], "items": 6, "samples": 2, **fields}).build(tokenizer)
    )


def test_the_right_answer_keeps_every_constraint_and_each_item_ends_where_it_says(tokenizer: Any) -> None:
    for sample in samples(tokenizer, lengths=[1700], every=3):
        said = f"The magic number for{sample.text.split('The magic number for')[-1]}{sample.answer}"
        assert judge(sample, sample.answer_tokens, sample.answer).score == 1
        assert said.count("magic number for") == 6
        kinds = [(item, kind) for item, kind, _ in sample.facts["constraints"]]
        assert kinds[0] == (1, "begun")
        assert [item for item, kind in kinds if kind == "value"] == [2, 3, 4, 5, 6]
        assert [item for item, kind in kinds if kind == "every"] == [3, 6]
        stops = sample.facts["item_stops"]
        assert stops[-1] == len(sample.answer_tokens)
        for index, stop in enumerate(stops):
            read = "".join(tokenizer.decode(sample.answer_tokens[:stop]).split())
            assert read.endswith(".")
            assert read.count(".") == index + 1


def test_one_constraint_that_is_not_kept_is_missing_from_the_score(plain: Any) -> None:
    [sample, _] = samples(plain, every=3)
    worse = sample.answer.replace(" In the evening the magic", " The magic", 1)
    assert judge(sample, sample.answer_tokens, worse).score == pytest.approx(7 / 8)


def test_the_prompt_is_a_span_and_numbers_stand_in_it_once(plain: Any) -> None:
    for sample in samples(plain):
        span = sample.span("prompt")
        assert (span.start, span.stop) == (0, len(sample.tokens))
        for index, line in enumerate(sample.facts["constraints"]):
            if line[1] != "every":
                assert sample.text.count(line[2].split(" is ")[-1]) == 1, index


def test_without_the_numbers_the_same_is_asked(plain: Any) -> None:
    for whole, absent in zip(samples(plain), samples(plain, given="gold_absent"), strict=True):
        assert (whole.name, whole.answer_tokens) == (absent.name, absent.answer_tokens)
        assert whole.text.split("Write down")[1] == absent.text.split("Write down")[1]
        assert not any(
            value.split(" is ")[-1] in absent.text for _, kind, value in whole.facts["constraints"] if kind != "every"
        )


def test_words_give_any_number_of_items_and_cities_do_not(plain: Any) -> None:
    [sample, _] = samples(plain, lengths=[4000], items=40, kind="words")
    assert len(sample.facts["item_stops"]) == 40
    with pytest.raises(UsageError, match="22 cities"):
        samples(plain, items=23)
