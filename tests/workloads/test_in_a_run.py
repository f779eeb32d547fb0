"""Workloads in a run: asked, answered, judged by their own rule, which the run and its report state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import probe
from probe.casebook import check
from probe.errors import UsageError
from probe.strict_yaml import parse
from probe.success import RULES

BOOK = """\
name: mine
question: Does it?
workload: {{{workload}}}
stages:
  - name: read
    conditions:
      baseline: {{role: baseline, capture: true}}
      {more}
    capture: [entropy, span_mass]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, plain: PreTrainedTokenizerFast) -> Any:
    """A Llama of random weights with a byte-level tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(plain), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
                         bos_token_id=None, eos_token_id=1, pad_token_id=None)  # fmt: skip
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    plain.save_pretrained(folder)
    return probe.load(str(folder))


def played(model: Any, out: Path, workload: str, more: str = "") -> Any:
    book = check(parse(BOOK.format(workload=workload, more=more), "book.yaml"))
    return probe.run(book, model=model, out=out)


@pytest.mark.parametrize(
    ("workload", "more", "rule"),
    [
        ("documents: {lengths: [500], depths: [0.5], samples: 2, max_new_tokens: 4}",
         "oracle: {role: gold_only, workload: {given: gold_only}}", "substring"),
        ("needles: {lengths: [400], values: 2, samples: 2}", "", "all"),
        ("flip_flop: {lengths: [64], p: [0.8], samples: 2}", "", "exact"),
        ("associative_recall: {lengths: [64], samples: 2}", "", "exact"),
        ("plain_text: {lengths: [100], samples: 2, targets: 8}",
         "shuffled: {role: other, workload: {distant: shuffled, near: 10}}", "none"),
    ],
)  # fmt: skip
def test_a_run_states_its_rule(model: Any, tmp_path: Path, workload: str, more: str, rule: str) -> None:
    run = played(model, tmp_path / "run", workload, more)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "complete"
    assert record["success_rules"] == [RULES[rule]]  # type: ignore[index]
    traces = list(run.traces())
    assert len(traces) == (4 if more else 2)
    for trace in traces:
        outcome = trace.outcome
        assert outcome.success_rule == RULES[rule]  # type: ignore[index]
        assert (outcome.correct is None) == (rule == "none")
        assert outcome.answer_loss > 0
        assert len(outcome.response_tokens) == trace.sample.num_new_tokens
        if trace.facts["role"] == "baseline":
            assert [str(name) for name in trace["span_mass"]["span"].values] == [s.name for s in trace.sample.spans]
    report = (tmp_path / "run" / "report.html").read_text()
    assert ("An answer counts as right" in report) == (rule != "none")


def test_a_continued_run_reads_the_same_samples(model: Any, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "one two three", "answer": "four"}\n{"text": "and more"}\n')
    workload = f"own_prompts: {{file: {tmp_path / 'own.jsonl'}}}"
    first = played(model, tmp_path / "run", workload)
    assert [trace.outcome.correct for trace in sorted(first.traces(), key=lambda t: t.sample.name)] == [False, None]
    commits = (tmp_path / "run" / "commits.jsonl").read_text()
    played(model, tmp_path / "run", workload)
    assert (tmp_path / "run" / "commits.jsonl").read_text() == commits
    (tmp_path / "own.jsonl").write_text('{"text": "another text"}\n')
    with pytest.raises(probe.errors.RunFolderInUse, match="file"):
        played(model, tmp_path / "run", workload)


def test_what_cannot_be_asked_is_said_before_the_run(model: Any, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(UsageError, match=r"own\.jsonl:2: text: expected text"):
        played(model, tmp_path / "run", f"own_prompts: {{file: {tmp_path / 'own.jsonl'}}}")
    with pytest.raises(UsageError, match="key_values: the question with two pairs takes"):
        played(model, tmp_path / "run", "key_values: {lengths: [40]}")
    assert not (tmp_path / "run").exists()
