"""A private run keeps token ids and text to itself; what analyses need of it stays, and those that need more say so."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import probe
from probe import plan
from probe.casebook import load
from probe.command.cli import app
from probe.errors import UsageError
from probe.outcome import Outcome
from probe.private import withheld_outcome, withheld_sample
from probe.sample import Sample, Span
from probe.storage.run_folder import Run
from probe.storage.trace_store import Trace
from probe.withheld import Withheld, token_ids_from_json

SECRET = Sample(
    "Alice's letter",
    (11, 12, 13, 14, 15, 16),
    (Span("needle", 1, 3), Span("my salary is 9000", 3, 4), Span("document_2", 4, 5)),
    (13, 14),
    " nine thousand",
    "Dear Bob, my salary is 9000",
    {"length": 6, "seed": 3, "city": "Zurich", "magic": 9000, "half": "find", "ids": [11, 12]},
)

BOOK = """\
format: 1
name: letters
question: Does it?
workload:
  needle: {lengths: [96], depths: [0.0, 1.0], samples: 2}
stages:
  - name: read
    conditions:
      baseline: {role: baseline, capture: true}
    capture: [match_mass]
    analyses: [effective_length, position_bias, attention_sinks, retrieval_heads]
"""


def test_what_is_left_of_a_sample_says_where_things_are_and_not_what() -> None:
    kept = withheld_sample(SECRET)
    said = json.dumps(kept.to_json())
    for word in ("salary", "9000", "nine", "Zurich", "Alice", "Bob", "11", "12", "13", "14"):
        assert word not in said
    assert (len(kept), len(kept.answer_tokens)) == (6, 2)
    assert [(s.name, s.start, s.stop) for s in kept.spans] == [("needle", 1, 3), ("span_1", 3, 4), ("document_2", 4, 5)]
    assert kept.facts == {"length": 6, "seed": 3, "half": "find"}
    assert Sample.from_json(json.loads(said)) == kept
    assert withheld_sample(kept) == kept


def test_what_is_left_of_an_answer_says_how_good_it_was() -> None:
    said = Outcome("nine", (13, 14), True, "exact", (-0.5,), 1.5, "NaN, in the embedding of token 13 at position 4")
    kept = withheld_outcome(said)
    assert (kept.response, len(kept.response_tokens), kept.correct, kept.text_loss) == ("", 2, True, 1.5)
    assert kept.failed == "NaN, in the embedding of a token at position 4"
    assert Outcome.from_json(json.loads(json.dumps(kept.to_json()))) == kept


@pytest.mark.parametrize(
    "look",
    [
        list,
        set,
        np.asarray,
        iter,
        reversed,
        lambda t: t[0],
        lambda t: 3 in t,
        lambda t: t.count(3),
        lambda t: t.__add__((1,)),
    ],
)
def test_an_id_that_was_withheld_cannot_be_taken_for_one(look: Any) -> None:
    with pytest.raises(UsageError, match=r"private.*this needs them"):
        look(Withheld.of(5))


@pytest.mark.parametrize("value", [{"withheld": -1}, {"withheld": 10**12}, {"withheld": "5"}, {"withheld": True}])
def test_a_hostile_number_of_ids_costs_nothing(value: Any) -> None:
    with pytest.raises(ValueError, match="no number of tokens"):
        token_ids_from_json(value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private")
    (folder / "book.yaml").write_text(BOOK)
    done = CliRunner().invoke(
        app, ["run", str(folder / "book.yaml"), "--model", "needle", "--out", str(folder / "run"), "--private", "-q"]
    )
    assert done.exit_code == 0, done.output
    return folder


def secrets(folder: Path) -> Iterator[str]:
    """Yield what must stand nowhere: answers, needles, and every four token ids in a row."""
    book = load(folder / "book.yaml")
    for sample in plan.halved(book.build_workload().build(probe.load("needle").tokenizer)):
        needle = sample.span("needle")
        yield sample.answer.strip()
        yield f"number for {sample.facts['city']}"
        for ids in (sample.tokens[needle.start : needle.stop], sample.tokens[:8], sample.answer_tokens):
            for four in zip(*(ids[i:] for i in range(4)), strict=False):
                yield from (separator.join(map(str, four)) for separator in (",", ", ", "\n", " "))


def test_no_file_of_the_run_holds_a_word_or_an_id(folder: Path) -> None:
    looked_for = set(secrets(folder))
    assert len(looked_for) > 50
    for path in sorted((folder / "run").rglob("*")):
        if path.is_file():
            data = path.read_bytes().decode("utf-8", errors="replace")
            found = [secret for secret in looked_for if secret in data]
            assert not found, f"{path} holds {found[0]!r}"
    # What is packed is looked at unpacked.
    tokens = [
        np.array(s.tokens) for s in load(folder / "book.yaml").build_workload().build(probe.load("needle").tokenizer)
    ]
    for trace, array in itertools.chain.from_iterable(
        ((trace, array) for array in trace.dataset.variables.values()) for trace in Run(folder / "run").traces()
    ):
        assert trace.private
        for ids in tokens:
            assert array.dtype.kind != "i" or not np.isin(ids[:8], array.values).all() or _is_positions(array.values)


def _is_positions(values: np.ndarray[Any, Any]) -> bool:
    """Return whether integers count up, or are keys' positions, rather than being ids."""
    return values.ndim != 1 or bool((np.diff(values) > 0).all())


def test_the_analyses_that_can_are_made_and_the_one_that_cannot_is_named(folder: Path) -> None:
    run = Run(folder / "run")
    assert [finding.analysis for finding in run.findings()] == ["effective_length", "position_bias", "attention_sinks"]
    (why,) = run.record["stages"]["read"]["not_analysed"].values()
    assert why == "retrieval_heads compares token ids, which a private run leaves out"
    with pytest.raises(UsageError, match=r"retrieval_heads compares token ids.*private trace"):
        probe.retrieval_heads(run)
    assert run.verify() == []
    assert "--private" in run.record["command"]


def test_it_finds_what_the_open_run_finds(folder: Path, tmp_path: Path) -> None:
    opened = probe.run(folder / "book.yaml", model="needle", out=tmp_path / "run")
    hidden = Run(folder / "run")
    for name in ("position_bias", "attention_sinks"):
        one, other = (next(f for f in run.findings() if f.analysis == name) for run in (opened, hidden))
        assert (one.claim, one.verdict) == (other.claim, other.verdict)
    for one_trace, other_trace in zip(opened.traces(), hidden.traces(), strict=True):
        assert one_trace.dataset.equals(other_trace.dataset)
        assert one_trace.outcome is not None
        assert other_trace.outcome == withheld_outcome(one_trace.outcome)


def test_a_private_run_is_continued_and_never_mixed_with_an_open_one(folder: Path) -> None:
    before = Run(folder / "run").units
    again = probe.run(folder / "book.yaml", model="needle", out=folder / "run", private=True)
    assert again.units == before
    with pytest.raises(probe.ProbeError, match="differs in private"):
        probe.run(folder / "book.yaml", model="needle", out=folder / "run")


def test_a_private_trace_refuses_vectors_and_keeps_the_rest(tmp_path: Path) -> None:
    model = probe.load("needle")
    sample = dataclasses.replace(SECRET, tokens=(1, 2, 3, 4, 5, 6))
    with pytest.raises(UsageError, match="queries_and_keys cannot be kept in a private trace"):
        probe.trace(model, sample, queries_and_keys=[0], private=True)
    trace = probe.trace(model, sample, statistics=["span_mass", "match_mass"], private=True, out=tmp_path / "t")
    assert isinstance(trace, Trace)
    assert trace["span_mass"]["span"].values.tolist() == ["needle", "span_1", "document_2"]
    open_one = probe.trace(model, sample, statistics=["match_mass"])
    np.testing.assert_array_equal(trace["match_mass"].values, open_one["match_mass"].values)
    assert "salary" not in trace._repr_html_()


def test_a_casebook_that_keeps_vectors_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "book.yaml").write_text(BOOK.replace("[match_mass]", "{queries_and_keys: [0]}"))
    with pytest.raises(UsageError, match="cannot be kept in a private trace"):
        probe.run(tmp_path / "book.yaml", model="needle", out=tmp_path / "run", private=True)
    assert not (tmp_path / "run").exists()
