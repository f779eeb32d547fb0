"""A recurrent and a hybrid model are asked as any other: samples with answers, long prompts in chunks, casebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import probe
from probe import discovery
from probe.errors import UsageError
from probe.sample import Sample

SPECIMEN = discovery.get("casebooks", "first-look").parents[1] / "specimens" / "needle"
ASKED = ["loss", "residual_norm", {"state_norm": {"every": 16}}, "decay"]
CASEBOOK = """format: 1
name: recurrent
question: From what length does it fail?
workload: {needle: {lengths: [64, 128], depths: [0.5], samples: 2}}
stages:
  - name: read
    conditions:
      baseline: {role: baseline, capture: true}
      gold-only: {role: gold_only, workload: {haystack: none}}
    analyses: [ANALYSES]
"""


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "rwkv", "falcon_h1", "jamba", "qwen3_next", "recurrent_gemma"])
def test_a_sample_with_an_answer_reads_the_same_in_chunks(kind: str, make: Any, tokens: Any) -> None:
    model, ids, answer = make(kind), tokens(90), tokens(3, seed=1)
    sample = Sample("asked", tuple(ids), answer_tokens=tuple(answer))
    at_once, in_chunks = (
        probe.trace(model, sample, statistics=ASKED, chunk_tokens=chunk, max_new_tokens=3) for chunk in (4096, 16)
    )
    for name in at_once.dataset:
        one, other = (trace[name].values.astype(float) for trace in (at_once, in_chunks))
        scale = np.nanmax(np.abs(one))
        np.testing.assert_allclose(other, one, rtol=2e-4, atol=2e-4 * scale, err_msg=str(name))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*ids, *answer]]), use_cache=False).logits[0].double()
    log_probability = logits.log_softmax(-1)
    expected = log_probability[torch.arange(89, 92), answer]
    loss = -log_probability[torch.arange(89), torch.tensor(ids[1:])]
    for trace in (at_once, in_chunks):
        np.testing.assert_allclose(trace.outcome.answer_log_probability, expected, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(trace["loss"].values[1:90], loss, rtol=2e-4, atol=2e-4)
        assert trace.outcome.response_tokens == at_once.outcome.response_tokens
    assert in_chunks.provenance["prompt"].startswith("in chunks of at most 16 tokens")
    assert at_once.provenance["prompt"] == "whole, 89 tokens at once"


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "rwkv", "xlstm"])
def test_attention_is_not_asked_of_a_model_that_has_none(kind: str, make: Any) -> None:
    model = make(kind, **({"hidden_size": 128, "num_heads": 2} if kind == "xlstm" else {}))
    loaded = probe.load(model)
    assert loaded.attention_layers == {}
    assert loaded.num_heads == loaded.num_kv_heads == loaded.head_dim == [0, 0]
    for asked in ("entropy", probe.attention_sinks, {"entropy": {"layers": [0]}}):
        with pytest.raises(UsageError, match="ForCausalLM has no attention layer"):
            probe.trace(loaded, [3, 4, 5], statistics=asked)
    assert probe.trace(loaded, [3, 4, 5], statistics="residual_norm")["residual_norm"].values.shape == (2, 3)


@pytest.mark.parametrize(
    ("kind", "analyses"),
    [("mamba2", "effective_length"), ("falcon_h1", "effective_length, position_bias, attention_sinks")],
)
def test_a_casebook_plays(kind: str, analyses: str, make: Any, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SPECIMEN)
    make(kind, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "asked.yaml").write_text(CASEBOOK.replace("ANALYSES", analyses), encoding="utf-8")
    run = probe.run(tmp_path / "asked.yaml", model=str(tmp_path / "model"), out=tmp_path / "run")
    assert run.record["status"] == "complete"
    assert [each.analysis for each in run.findings()] == analyses.split(", ")
    assert len(list(run.traces(condition="baseline"))) == 4
    assert not run.verify()


def test_a_casebook_that_asks_of_attention_says_that_there_is_none(make: Any, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SPECIMEN)
    make("mamba2", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="has no attention layer to read: it is all recurrent"):
        probe.run("first-look", model=str(tmp_path / "model"), out=tmp_path / "run", lengths=(64,), limit=1)
