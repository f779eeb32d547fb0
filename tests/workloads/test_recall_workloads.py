"""Flip-flops and associative recall: against their definitions, step by step, and their closed forms."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from probe.casebook import build
from probe.errors import UsageError
from probe.sample import Sample
from probe.workloads.flip_flop import SYMBOLS, flip_flop_symbols


def samples(name: str, tokenizer: Any, **fields: Any) -> list[Sample]:
    return list(build("workloads", name, fields).build(tokenizer))


# Expected reads of a sequence of 512 tokens: 254 · (1 − p) / 2 + 1.
@pytest.mark.parametrize(("p", "reads"), [(0.98, 3.54), (0.8, 26.4), (0.1, 115.3)])
def test_reads_are_as_many_as_the_closed_form_says(p: float, reads: float) -> None:
    rows = 4000
    drawn = flip_flop_symbols(np.random.default_rng(5), rows, 256, p)
    assert drawn.shape == (rows, 512)
    instruction, bit = drawn[:, 0::2], drawn[:, 1::2]
    share = (1 - p) / 2
    error = math.sqrt(254 * share * (1 - share) / rows)
    counts = {kind: (instruction == at).sum(axis=1) for at, kind in enumerate("wri")}
    assert counts["r"].mean() == pytest.approx(reads, abs=4 * error)
    assert counts["w"].mean() == pytest.approx(254 * share + 1, abs=4 * error)
    # Independent from pair to pair: the variance is the binomial one too.
    assert counts["r"].var() == pytest.approx(254 * share * (1 - share), rel=0.12)
    assert (instruction[:, 0] == 0).all()
    assert (instruction[:, -1] == 1).all()
    free = bit[instruction != 1]
    assert (free == 4).mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(len(free)))


def test_every_read_is_the_last_write() -> None:
    for row in flip_flop_symbols(np.random.default_rng(1), 300, 64, 0.5):
        memory = None
        for instruction, bit in zip(row[0::2], row[1::2], strict=True):
            if SYMBOLS[instruction] == "w":
                memory = bit
            elif SYMBOLS[instruction] == "r":
                assert bit == memory
            assert SYMBOLS[bit] in "01"


@pytest.mark.parametrize("p", [0.0, 1.0, 0.8])
def test_a_flip_flop_says_where_it_wrote_and_read(
    tokenizer: PreTrainedTokenizerFast, lexicon: PreTrainedTokenizerFast, p: float
) -> None:
    for used in (tokenizer, lexicon):
        for sample in samples("flip_flop", used, lengths=[256], p=[p], samples=3):
            words = (sample.text + sample.answer).split(" ")
            # Where each word's last token is, by tokenising what stands before it.
            ends, before = [], len(sample.tokens) - len(used(sample.text, add_special_tokens=False)["input_ids"])
            for at in range(1, len(words)):
                ends.append(before + len(used(" ".join(words[:at]), add_special_tokens=False)["input_ids"]) - 1)
            writes = [ends[at + 1] for at in range(0, len(words) - 2, 2) if words[at] == "w"]
            reads = [ends[at] for at in range(0, len(words), 2) if words[at] == "r"]
            assert sample.facts["write_positions"] == writes
            assert sample.facts["read_positions"] == reads
            assert sample.facts["last_write_positions"] == [max(w for w in writes if w < read) for read in reads]
            assert sample.facts["num_reads"] == len(reads)
            assert sample.facts["num_writes"] == len(writes)
            assert sample.facts["num_pairs"] == len(words) // 2
            assert sample.span("needle_value").stop - 1 == writes[-1]
            last = max(at for at in range(0, len(words), 2) if words[at] == "w")
            assert sample.facts["age_pairs"] == (len(words) - 2 - last) // 2
            assert sample.answer == f" {words[last + 1]}"
            nearest = [span for span in sample.spans if span.name.startswith("write_")]
            assert [span.stop - 1 for span in sorted(nearest, key=lambda span: -span.start)] == writes[:-1][::-1]


def test_the_published_length_counts_the_last_bit(lexicon: PreTrainedTokenizerFast) -> None:
    (sample,) = samples("flip_flop", lexicon, p=[0.8], samples=1)
    assert sample.facts["num_pairs"] == 256
    assert len(sample.tokens) + len(sample.answer_tokens) == 512


@pytest.mark.parametrize("answers", ["given", "filler"])
def test_every_key_is_asked_for_once(tokenizer: PreTrainedTokenizerFast, answers: str) -> None:
    for sample in samples("associative_recall", tokenizer, lengths=[64, 200], samples=6, answers=answers):
        leading = len(sample.tokens) % 2 == 0
        tokens = list(sample.tokens[leading:])
        pairs = sample.facts["num_pairs"]
        keys, values = tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        assert len({*keys, *values}) == 2 * pairs
        asked = [at - leading for at in sample.facts["query_positions"]]
        assert sorted(tokens[at] for at in asked) == sorted(keys)
        assert [at for at in range(2 * pairs, len(tokens)) if tokens[at] in keys] == asked
        assert asked[-1] == len(tokens) - 1
        for at, source in zip(asked, sample.facts["source_positions"], strict=True):
            assert tokens[source - leading - 1] == tokens[at]
            if answers == "given" and at + 1 < len(tokens):
                assert tokens[at + 1] == tokens[source - leading]
        assert sample.answer_tokens == (values[keys.index(tokens[-1])],)
        assert not set(tokens) & set(tokenizer.all_special_ids)
        assert sample.span("needle_value").start == sample.facts["source_positions"][-1]


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_slots_are_drawn_by_the_power_law(plain: PreTrainedTokenizerFast, power: float) -> None:
    number = 800
    made = samples("associative_recall", plain, lengths=[23], pairs=2, samples=number, power=power)
    # 24 tokens with the answer's: two pairs, ten slots, of which the last is the other query.
    drawn = Counter((sample.facts["query_positions"][0] - 4) // 2 for sample in made)
    weights = [(slot + 1) ** (power - 1) for slot in range(9)]
    for slot, weight in enumerate(weights):
        share = weight / sum(weights)
        assert drawn[slot] / number == pytest.approx(share, abs=4.5 * math.sqrt(share * (1 - share) / number))


def test_pairs_that_do_not_fit_are_refused(plain: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match="8 pairs, each asked for again, take 31 tokens and do not fit into 30"):
        samples("associative_recall", plain, lengths=[30], pairs=8, samples=1)
    assert len(samples("associative_recall", plain, lengths=[31], pairs=8, samples=1)[0].tokens) == 31
    with pytest.raises(UsageError, match="different tokens"):
        samples("associative_recall", plain, lengths=[400], pairs=8, samples=1, vocabulary=12)


def test_pairs_of_an_age_stand_after_filler_that_gold_only_leaves_out(plain: PreTrainedTokenizerFast) -> None:
    asked = {"lengths": [64, 200], "ages": [32, 0], "pairs": 3, "samples": 4}
    whole = samples("associative_recall", plain, **asked)
    alone = samples("associative_recall", plain, **asked, given="gold_only")
    assert [each.facts["pairs_age"] for each in whole] == [32] * 4 + [0] * 4 + [32] * 4 + [0] * 4
    for text, short in zip(whole, alone, strict=True):
        assert text.name == short.name
        age = text.facts["pairs_age"] or text.facts["length"]
        assert len(short.tokens) == age - 1
        assert len(text.tokens) == text.facts["length"] - 1
        assert text.tokens[-len(short.tokens) :] == short.tokens
        keys = short.tokens[0:6:2]
        assert not set(keys) & set(text.tokens[: -len(short.tokens)])
        last = len(text.tokens) - 1
        assert text.facts["age_tokens"] == last - text.span("needle_value").start
        for key, value in (("query_positions", 0), ("source_positions", -1)):
            for sample in (text, short):
                assert all(sample.tokens[at + value] in keys for at in sample.facts[key])


@pytest.mark.parametrize("ages", [[65], [-1], []])
def test_an_age_beyond_the_shortest_text_is_refused(plain: PreTrainedTokenizerFast, ages: list[int]) -> None:
    with pytest.raises(UsageError, match="ages must lie between 0 and the shortest length"):
        samples("associative_recall", plain, lengths=[64, 200], ages=ages)


def test_facts_are_json(plain: PreTrainedTokenizerFast) -> None:
    for name in ("flip_flop", "associative_recall"):
        (sample,) = samples(name, plain, lengths=[256], samples=1, **({"p": [0.5]} if name == "flip_flop" else {}))
        assert json.loads(json.dumps(dict(sample.facts))) == sample.facts
