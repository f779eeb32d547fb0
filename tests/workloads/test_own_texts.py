"""A user's own prompts, documents and texts: what is right is taken as it is, what is wrong is pointed at."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from probe.casebook import Override, build, check
from probe.errors import NotAvailable, UsageError
from probe.private import withheld_sample
from probe.sample import Sample
from probe.strict_yaml import parse
from probe.workloads.plain_text import ENGLISH
from probe.workloads.sources import source_hashes

Build = Callable[..., list[Sample]]


@pytest.fixture
def prompts(tmp_path: Path, plain: PreTrainedTokenizerFast) -> Build:
    """Write lines, read them as prompts."""

    def made(*lines: Any, **fields: Any) -> list[Sample]:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / "own.jsonl").write_text(text, encoding="utf-8")
        return list(build("workloads", "own_prompts", {"file": str(tmp_path / "own.jsonl"), **fields}).build(plain))

    return made


GOOD = {
    "text": "The key is 7203. What is the key? The key is",
    "answer": "7203",
    "spans": {"needle": [0, 16], "needle_value": [11, 15]},
    "facts": {"needle_depth": 0.25, "note": "mine"},
}


def test_a_prompt_is_taken_as_it_stands(prompts: Build, plain: PreTrainedTokenizerFast) -> None:
    first, second = prompts(GOOD, {"text": "Nothing is asked here."})
    assert first.text == GOOD["text"]
    assert first.answer == " 7203"
    whole = plain(first.text + first.answer)["input_ids"]
    assert [*first.tokens, *first.answer_tokens] == whole
    assert plain.decode(first.tokens[slice(first.span("needle").start, first.span("needle").stop)]) == GOOD["text"][:16]
    assert first.facts["needle_depth"] == 0.25
    assert first.facts["length"] == len(first.tokens)
    assert (first.name, second.name) == ("own_prompts-1", "own_prompts-2")
    assert (second.answer_tokens, second.success_rule) == ((), "exact")
    assert (first.facts["seed"], second.facts["seed"]) == (0, 1)


@pytest.mark.parametrize(
    ("text", "answer", "joined"),
    [("is", "7", " 7"), ("is", " 7", " 7"), ("is:\n", "7", "7"), ("is", "\n7", "\n7")],
)
def test_a_space_stands_before_the_answer_unless_there_is_white_space(
    prompts: Build, text: str, answer: str, joined: str
) -> None:
    assert prompts({"text": text, "answer": answer})[0].answer == joined


def test_a_prompt_whose_last_space_belongs_to_the_answer_is_refused(prompts: Build) -> None:
    with pytest.raises(UsageError, match=r"own\.jsonl:1: .* merges the end .*; end the prompt without white space"):
        prompts({"text": "The key is ", "answer": "7"})


def test_other_answers_count_as_the_rule_says(prompts: Build) -> None:
    line = {"text": "Who?", "answer": "Ada", "answers": ["A. Byron", "Ada"]}
    assert prompts(line, success_rule="substring")[0].answers == ("Ada", "A. Byron")
    assert prompts(line, success_rule="all")[0].answers == ("A. Byron", "Ada")
    assert prompts(line)[0].answers == ()
    assert prompts({"text": "Who?", "answer": "Ada"}, success_rule="substring")[0].answers == ("Ada",)
    with pytest.raises(UsageError, match=r"own\.jsonl:1: .*'The' cannot be looked for"):
        prompts({"text": "Who?", "answer": "The"}, success_rule="substring")


def test_names_samples_and_empty_lines(prompts: Build) -> None:
    made = prompts({"text": "a", "name": "mine"}, "", {"text": "b"}, {"text": "c"}, samples=2)
    assert [sample.name for sample in made] == ["mine", "own_prompts-3"]
    with pytest.raises(UsageError, match=r"own\.jsonl:1: name: two prompts are called 'x'"):
        prompts({"text": "a", "name": "x"}, {"text": "b", "name": "x"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 3}', "2: text: expected text that is not empty, got 3"),
        ('{"answer": "a"}', "2: text: expected text that is not empty, got nothing"),
        ('{"txt": "a"}', "2: txt: unknown field; did you mean 'text'?"),
        ('{"text": "a", "text": "b"}', "2: text: stands twice"),
        ("[1]", "2: expected an object, got [1]"),
        ('{"text": "a",}', "2: not JSON at column 14"),
        ('{"text": NaN}', "2: NaN is not JSON"),
        ('{"text": "a", "answer": ""}', '2: answer: expected text that is not empty, got ""'),
        ('{"text": "a", "answers": "b"}', "2: answers: expected a list of texts"),
        ('{"text": "a", "answers": ["b"]}', "2: answers: there must be an `answer`"),
        ('{"text": "ab", "spans": [1]}', "2: spans: expected an object, got [1]"),
        ('{"text": "ab", "spans": {"x": [1, 5]}}', "2: spans.x: expected [start, stop] in characters of a text of 2"),
        ('{"text": "ab", "spans": {"x": [1, 1]}}', "2: spans.x: expected [start, stop]"),
        ('{"text": "ab", "spans": {"x": [true, 2]}}', "2: spans.x: expected [start, stop]"),
        ('{"text": "a  b", "spans": {"x": [1, 3]}}', "2: spans.x: nothing but white space"),
        ('{"text": "ab", "facts": {"a": [1]}}', "2: facts.a: expected a number or a text, got list"),
        ('{"text": "ab", "facts": {"needle_depth": 2}}', "2: facts.needle_depth: expected a share between 0 and 1"),
        ('{"text": "ab", "facts": {"length": "long"}}', "2: facts.length: expected a number, got 'long'"),
        ("[" * 100_000, "2: nested too deeply"),
    ],
)
def test_a_bad_line_is_pointed_at(prompts: Build, line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        prompts({"text": "fine"}, line)
    assert "own.jsonl:" + message in str(caught.value)
    assert len(str(caught.value)) < 400


@given(raw=st.binary(max_size=60))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_line_breaks_it(
    raw: bytes, tmp_path_factory: pytest.TempPathFactory, plain: PreTrainedTokenizerFast
) -> None:
    file = tmp_path_factory.mktemp("any") / "own.jsonl"
    file.write_bytes(raw)
    with contextlib.suppress(UsageError):
        list(build("workloads", "own_prompts", {"file": str(file)}).build(plain))


def test_a_file_that_is_not_there_is_named(tmp_path: Path, plain: PreTrainedTokenizerFast) -> None:
    with pytest.raises(NotAvailable, match=r"nowhere\.jsonl: No such file"):
        build("workloads", "own_prompts", {"file": str(tmp_path / "nowhere.jsonl")}).build(plain)
    with pytest.raises(UsageError, match="file must be the path"):
        build("workloads", "own_prompts", {})


def test_a_private_prompt_keeps_no_word_of_it(prompts: Build) -> None:
    line = {**GOOD, "name": "patient Smith", "facts": {"given": "Smith", "needle": "Smith", "needle_depth": 0.5}}
    line["spans"] = {"Smith": [0, 3], "needle": [0, 16]}
    (sample,) = prompts(line, success_rule="substring")
    kept = json.dumps(withheld_sample(sample).to_json())
    assert "Smith" not in kept
    assert "7203" not in kept
    assert withheld_sample(sample).facts["needle_depth"] == 0.5


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Nine documents, two of which answer a question."""
    (tmp_path / "docs").mkdir()
    for number in range(1, 10):
        text = f"City {number} lies at a river.\n\nIts mayor is Ada Number{number}. "
        (tmp_path / "docs" / f"city{number}.txt").write_text(text + "People like the old bridge. " * number)
    (tmp_path / "docs" / "notes.csv").write_text("left out")
    lines = [
        {"question": f"Who is mayor of city {n}?", "answer": f"Ada Number{n}", "document": f"city{n}.txt"}
        for n in (3, 5)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def own(library: Path, tokenizer: Any, **fields: Any) -> list[Sample]:
    where = {"documents": str(library / "docs"), "questions": str(library / "questions.jsonl")}
    return list(build("workloads", "own_documents", {**where, "lengths": [400], **fields}).build(tokenizer))


def test_own_documents_hold_the_one_that_answers_in_its_place(library: Path, plain: PreTrainedTokenizerFast) -> None:
    made = own(library, plain, depths=[0.0, 0.5, 1.0])
    assert [sample.facts["line"] for sample in made] == [1, 2] * 3
    for sample in made:
        span = sample.span("needle_value")
        assert plain.decode(sample.tokens[span.start : span.stop]).strip() == sample.answers[0]
        documents = [line for line in sample.text.split("\n") if line.startswith("Document [")]
        assert len(documents) == sample.facts["num_documents"] > 1
        gold = next(at for at, line in enumerate(documents) if sample.answers[0] in line)
        assert gold == sample.facts["gold_index"] == round(sample.facts["needle_depth"] * (len(documents) - 1))
        assert 400 - 120 < len(sample.tokens) <= 400
        assert "csv" not in sample.text
    assert len({sample.text.split("\n")[2] for sample in made}) > 1


@pytest.mark.parametrize(
    ("given", "documents", "answers"),
    [("gold_only", 1, True), ("closed_book", 0, False), ("gold_absent", None, False)],
)
def test_own_documents_may_be_left_out(
    library: Path, plain: PreTrainedTokenizerFast, given: str, documents: int | None, answers: bool
) -> None:
    for sample in own(library, plain, depths=[0.5], given=given):
        assert documents in (None, sample.text.count("Document ["))
        assert (sample.answers[0] in sample.text) == answers


def test_documents_may_be_json_lines(library: Path, plain: PreTrainedTokenizerFast) -> None:
    lines = [{"title": f"T{n}", "text": f"Mayor {n} is called Ada{n}."} for n in range(20)]
    (library / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    question = {"question": "Who is mayor 4?", "answer": "Ada4", "document": "T4", "answers": ["A. Four"]}
    (library / "questions.jsonl").write_text(json.dumps(question))
    (sample,) = own(library, plain, depths=[0.5], lengths=[200], documents=str(library / "all.jsonl"))
    assert sample.answers == ("Ada4", "A. Four")
    assert "(Title: T4) Mayor 4 is called Ada4." in sample.text


def test_of_many_documents_only_the_one_that_answers_is_marked(library: Path, plain: PreTrainedTokenizerFast) -> None:
    lines = [{"title": f"T{n}", "text": f"{n} is {n}."} for n in range(400)]
    (library / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (library / "questions.jsonl").write_text(json.dumps({"question": "4?", "answer": "4 is 4", "document": "T4"}))
    (sample,) = own(library, plain, depths=[0.5], lengths=[6000], documents=str(library / "all.jsonl"))
    marked = [span.name for span in sample.spans if span.name.startswith("document")]
    assert marked == [f"document_{sample.facts['gold_index']}"]
    assert sample.facts["num_documents"] > 200


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("questions.jsonl", '{"question": "Who?", "answer": "x"}', "questions.jsonl:1: document: expected text"),
        (
            "questions.jsonl",
            '{"question": "Who?", "answer": "x", "document": "no"}',
            "questions.jsonl:1: document: there is",
        ),
        ("questions.jsonl", '{"question": "Who?", "aswer": "x"}', "did you mean 'answer'?"),
        ("docs/empty.txt", " \n", "empty.txt: the file holds no text"),
    ],
)
def test_what_is_wrong_with_own_documents_is_pointed_at(
    library: Path, plain: PreTrainedTokenizerFast, file: str, text: str, message: str
) -> None:
    (library / file).write_text(text)
    with pytest.raises(UsageError) as caught:
        own(library, plain)
    assert message in str(caught.value)


def test_too_few_documents_for_a_length_are_said(library: Path, plain: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match=r"no more than 8, which take \d+ of 9000 tokens"):
        own(library, plain, lengths=[9000])
    with pytest.raises(NotAvailable, match="nothing: there is no such folder"):
        own(library, plain, documents="nothing")


def test_a_run_knows_when_its_files_change(library: Path) -> None:
    where = {"documents": str(library / "docs"), "questions": str(library / "questions.jsonl")}
    workload = build("workloads", "own_documents", where)
    before = source_hashes(workload)
    assert set(before) == {"documents", "questions"}
    (library / "docs" / "city4.txt").write_text("another")
    after = source_hashes(workload)
    assert after["questions"] == before["questions"]
    assert after["documents"] != before["documents"]
    assert source_hashes(build("workloads", "passkey", {})) == {}
    assert source_hashes(build("workloads", "needles", {"haystack": str(library / "docs" / "city4.txt")})).keys() == {
        "haystack"
    }


def test_a_casebook_says_where_a_wrong_question_stands(library: Path) -> None:
    (library / "questions.jsonl").write_text('{"question": ""}')
    book = f"""\
name: mine
question: Does it?
workload:
  own_documents:
    documents: {library / "docs"}
    questions: {library / "questions.jsonl"}
stages:
  - name: read
    conditions: {{baseline: {{role: baseline}}}}
"""
    with pytest.raises(UsageError, match=r"^book\.yaml:4:3: .*questions\.jsonl:1: question: expected text"):
        check(parse(book, "book.yaml"))


def test_limit_takes_the_first_of_own_prompts(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "a"}')
    book = f"""\
name: mine
question: Does it?
workload: {{own_prompts: {{file: {tmp_path / "own.jsonl"}}}}}
stages: [{{name: read, conditions: {{baseline: {{role: baseline}}}}}}]
"""
    limited = Override(samples=2).apply(check(parse(book, "book.yaml")))
    assert limited.build_workload().samples == 2
    with pytest.raises(UsageError, match="has no field 'lengths'"):
        Override(lengths=(64,)).apply(limited)


@pytest.fixture
def prose(tmp_path: Path) -> str:
    """A text of different words, so that a token's place can be known."""
    (tmp_path / "prose.txt").write_text(" ".join(f"word{at}" for at in range(3000)))
    return str(tmp_path / "prose.txt")


def test_the_same_targets_follow_prefixes_of_every_length(tokenizer: PreTrainedTokenizerFast, prose: str) -> None:
    workload = build("workloads", "plain_text", {"text": prose, "lengths": [50, 400], "samples": 3, "targets": 20})
    short, long = (list(workload.build(tokenizer))[at : at + 3] for at in (0, 3))
    leading = len(tokenizer("a")["input_ids"]) - len(tokenizer("a", add_special_tokens=False)["input_ids"]) > 0
    whole = tokenizer(Path(prose).read_text(), add_special_tokens=False)["input_ids"]
    for one, other in zip(short, long, strict=True):
        assert one.answer_tokens == other.answer_tokens
        assert (len(one.tokens), len(other.tokens)) == (50, 400)
        assert one.tokens[leading:] == other.tokens[-(50 - leading) :]
        start = one.facts["target_start"]
        assert list(one.answer_tokens) == whole[start : start + 20]
        assert list(other.tokens[leading:]) == whole[start - 400 + leading : start]
    assert len({sample.facts["target_start"] for sample in short}) == 3
    assert short[0].success_rule == "none"


@pytest.mark.parametrize("distant", ["shuffled", "replaced"])
def test_what_is_far_is_disturbed_and_what_is_near_is_not(
    plain: PreTrainedTokenizerFast, prose: str, distant: str
) -> None:
    fields = {"text": prose, "lengths": [300], "samples": 2, "near": 100}
    kept = list(build("workloads", "plain_text", fields).build(plain))
    changed = list(build("workloads", "plain_text", {**fields, "distant": distant}).build(plain))
    for there, other in zip(kept, changed, strict=True):
        assert there.name == other.name
        assert there.answer_tokens == other.answer_tokens
        assert there.tokens[-100:] == other.tokens[-100:]
        assert there.tokens[:200] != other.tokens[:200]
        assert (sorted(there.tokens) == sorted(other.tokens)) == (distant == "shuffled")
        assert (other.span("distant").stop, other.span("near").start) == (200, 200)
        assert (there.facts["disturbed_tokens"], other.facts["disturbed_tokens"]) == (0, 200)


def test_what_stands_first_is_left_out_or_put_further_in(tokenizer: PreTrainedTokenizerFast, prose: str) -> None:
    fields = {"text": prose, "lengths": [100], "samples": 2, "moved_to": 9}
    made = {
        how: list(build("workloads", "plain_text", {**fields, "first_token": how}).build(tokenizer))
        for how in ("kept", "dropped", "moved")
    }
    special = tokenizer("a")["input_ids"][0] != tokenizer("a", add_special_tokens=False)["input_ids"][0]
    for kept, dropped, moved in zip(*made.values(), strict=True):
        assert kept.name == dropped.name == moved.name
        assert dropped.tokens == kept.tokens[1:]
        assert moved.tokens == (*kept.tokens[1:10], kept.tokens[0], *kept.tokens[10:])
        assert (kept.span("first_token").start, moved.span("first_token").start) == (0, 9)
        assert "first_token" not in {span.name for span in dropped.spans}
        assert kept.facts["first_token_special"] is special
        assert kept.answer_tokens == dropped.answer_tokens == moved.answer_tokens
    with pytest.raises(UsageError, match="moved_to must lie between 1 and the shortest length, not 100"):
        build("workloads", "plain_text", {**fields, "first_token": "moved", "moved_to": 100})


def test_the_last_place_of_each_target_is_known(tmp_path: Path, plain: PreTrainedTokenizerFast) -> None:
    (tmp_path / "cycle.txt").write_text("a b c d e " * 200)
    fields = {"text": str(tmp_path / "cycle.txt"), "lengths": [64], "samples": 1, "targets": 8}
    (sample,) = build("workloads", "plain_text", fields).build(plain)
    whole = [*sample.tokens, *sample.answer_tokens]
    for at, back in enumerate(sample.facts["target_last_seen"], len(sample.tokens)):
        earlier = [before for before in range(at) if whole[before] == whole[at]]
        assert back == (at - earlier[-1] if earlier else None)


def test_the_text_can_be_given_on_the_command_line(prose: str) -> None:
    book = """
format: 1
name: mine
question: Does it?
workload: {plain_text: {text: english}}
stages: [{name: read, conditions: {baseline: {role: baseline}}}]
"""
    changed = Override(haystack=prose, lengths=(64,)).apply(check(parse(book, "book.yaml"))).build_workload()
    assert (changed.text, changed.lengths) == (prose, (64,))


def test_what_kind_of_token_each_target_is_is_known(tmp_path: Path, plain: PreTrainedTokenizerFast) -> None:
    (tmp_path / "kinds.txt").write_text("the the the cat, " * 100 + "unheardof ")
    fields = {"text": str(tmp_path / "kinds.txt"), "lengths": [64], "samples": 1, "targets": 12}
    (sample,) = build("workloads", "plain_text", fields).build(plain)
    words = [plain.decode([token]) for token in sample.answer_tokens]
    begins, frequent = sample.facts["target_begins_word"], sample.facts["target_frequent"]
    assert [word.strip() == "the" for word in words] == frequent
    assert [not begun for begun in begins] == [word == "," for word in words]
    assert sample.facts["near"] == 128


def test_a_private_stretch_says_what_was_disturbed_and_nothing_of_its_words(plain: PreTrainedTokenizerFast) -> None:
    fields = {"text": "english", "lengths": [300], "samples": 1, "distant": "replaced"}
    (sample,) = build("workloads", "plain_text", fields).build(plain)
    facts = withheld_sample(sample).facts
    assert (facts["distant"], facts["disturbed_tokens"], facts["near"]) == ("replaced", 172, 128)
    assert not [name for name in facts if name.startswith("target")]


def test_english_comes_with_the_toolkit(plain: PreTrainedTokenizerFast) -> None:
    workload = build("workloads", "plain_text", {"text": "english", "lengths": [1024], "samples": 2})
    first, second = workload.build(plain)
    assert workload.files() == {}
    assert first.text != second.text
    assert len(ENGLISH.read_bytes()) < 100_000


def test_a_text_that_is_too_short_is_said(tmp_path: Path, plain: PreTrainedTokenizerFast) -> None:
    (tmp_path / "short.txt").write_text("only a few words")
    with pytest.raises(UsageError, match=r"short\.txt has \d+ tokens, and 1088 are needed for a length of 1024"):
        build("workloads", "plain_text", {"text": str(tmp_path / "short.txt")}).build(plain)
    with pytest.raises(NotAvailable, match=r"text .*none\.txt"):
        build("workloads", "plain_text", {"text": str(tmp_path / "none.txt")}).build(plain)
