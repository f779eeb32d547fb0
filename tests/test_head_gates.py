"""Key-value heads that retrieve, read back as DuoAttention and kvpress read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

import probe
from probe.command.cli import app
from probe.errors import NotAvailable, UsageError
from probe.head_gates import head_gates, write_head_gates
from probe.sample import Sample, Span
from tests.analyses.conftest import NUM_HEADS, NUM_LAYERS, make_keys, make_sample, make_trace

COPYING = {(2, 1): 1.0, (1, 3): 0.6, (0, 0): 0.3}


def traces(kv_heads: int | None, copying: dict[tuple[int, int], float] = COPYING, **fields: Any) -> list[Any]:
    made = []
    for i in range(20):
        sample = make_sample(i)
        trace = make_trace(sample, keys=make_keys(sample, copying, seed=i), **fields)
        trace.provenance = {} if kv_heads is None else {"key_value_heads": [kv_heads] * NUM_LAYERS}
        made.append(trace)
    return made


def scores() -> np.ndarray:
    """Share of the answer's four tokens that each head copied: all are distinct, so that steps can be counted."""
    counted = np.zeros((NUM_LAYERS, NUM_HEADS))
    for trace in traces(2):
        source = trace.sample.span("needle_value").start + np.arange(4)
        counted += (trace["top_keys_k_1"].to_numpy()[..., 0] == source).mean(-1) / 20
    return counted


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_a_key_value_head_has_its_query_heads_largest_score(kv_heads: int) -> None:
    by_hand = scores()
    gates, num_prompts = head_gates(traces(kv_heads))
    assert num_prompts == 20
    assert gates.shape == (NUM_LAYERS, kv_heads)
    per_group = NUM_HEADS // kv_heads
    for layer in range(NUM_LAYERS):
        for kv_head in range(kv_heads):
            own = by_hand[layer, kv_head * per_group : (kv_head + 1) * per_group]
            assert gates[layer, kv_head] == pytest.approx(own.max())
            assert head_gates(traces(kv_heads), pooling="mean")[0][layer, kv_head] == pytest.approx(own.mean())


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_both_libraries_split_the_heads_at_the_threshold(tmp_path: Path, kv_heads: int) -> None:
    whole, num_heads = write_head_gates(traces(kv_heads), tmp_path / "heads")
    read = np.loadtxt(tmp_path / "heads" / "full_attention_heads.tsv", dtype=float, delimiter="\t")
    config = json.loads((tmp_path / "heads" / "config.json").read_text())
    assert read.shape == (NUM_LAYERS, kv_heads)
    np.testing.assert_array_equal(read, head_gates(traces(kv_heads))[0])
    assert (config["sink_size"], config["recent_size"]) == (64, 256)
    assert (whole, num_heads) == ((read > 0.1).sum(), read.size)
    assert whole == 3
    # DuoAttention: whole from the quantile on, ties broken by a noise of up to 1e-6.
    noisy = np.clip(read, 0, 1) + np.random.default_rng(0).uniform(0, 1e-6, read.shape)
    np.testing.assert_array_equal(noisy >= np.quantile(noisy, config["sparsity"]), read > 0.1)
    # kvpress: so many lowest heads stream.
    streaming = np.argsort(read, axis=None)[: round(read.size * config["sparsity"])]
    assert set(streaming.tolist()) == set(np.flatnonzero(read.ravel() <= 0.1).tolist())


def test_what_cannot_be_told_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="how many key-value heads"):
        head_gates(traces(None))
    with pytest.raises(NotAvailable, match="20 × the answer was wrong"):
        head_gates(traces(2, correct=False))
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists"):
        write_head_gates(traces(2), tmp_path / "there")


def test_a_model_with_grouped_heads_scores_as_its_own_eager_attention_says() -> None:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.4, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    hf = transformers.LlamaForCausalLM(config).eval()
    generator = np.random.default_rng(0)
    made, expected = [], []
    hf.set_attn_implementation("eager")
    for index in range(6):
        tokens = generator.integers(3, 16, 40).tolist()
        text, said, keys = list(tokens), [], []
        with torch.no_grad():
            for _ in range(5):
                out = hf(torch.tensor([text]), output_attentions=True)
                keys.append([layer[0, :, -1].argmax(-1).tolist() for layer in out.attentions])
                said.append(int(out.logits[0, -1].argmax()))
                text.append(said[-1])
        if 2 in said:
            continue
        place = Span("needle_value", 5, 35)
        made.append(Sample(name=f"s{index}", tokens=tuple(tokens), spans=(place,), answer_tokens=tuple(said)))
        needle = set(tokens[5:35])
        score = np.zeros((2, 8))
        for layer in range(2):
            for head in range(8):
                looked = [(keys[step][layer][head], said[step]) for step in range(5)]
                score[layer, head] = len({w for k, w in looked if 5 <= k < 35 and tokens[k] == w}) / len(needle)
        expected.append(score)
    assert len(made) >= 3
    hf.set_attn_implementation("sdpa")
    model = probe.load(hf)
    captured = [probe.trace(model, sample, statistics=[probe.retrieval_heads]) for sample in made]
    assert all(trace.outcome.correct for trace in captured)
    mean = np.mean(expected, axis=0)
    assert mean.max() > 0
    finding = probe.retrieval_heads(captured, threshold=0.0)
    rows = {(row["layer"], row["head"]): row for row in finding.records() if row["score"] > 0}
    assert {at for at, row in rows.items()} >= {(int(a), int(b)) for a, b in np.argwhere(mean > 0)}
    for at in np.argwhere(mean > 0):
        row = rows[int(at[0]), int(at[1])]
        assert row["score"] == pytest.approx(mean[tuple(at)], rel=1e-3)
        assert row["kv_head"] == at[1] // 4
    np.testing.assert_allclose(head_gates(captured)[0], mean.reshape(2, 2, 4).max(-1))


def test_the_command_writes_the_folder_and_refuses_a_choice_of_heads(tmp_path: Path) -> None:
    model = probe.load("needle")
    sample = next(iter(probe.needle(lengths=(128,), depths=(0.5,), samples=1).build(model.tokenizer)))
    probe.trace(model, sample, statistics=[probe.retrieval_heads]).save(tmp_path / "trace")
    arguments = ["export", str(tmp_path / "trace"), "--format", "duo_attention", "--out", str(tmp_path / "heads")]
    refused = CliRunner().invoke(app, [*arguments, "--heads", "1"])
    assert refused.exit_code == 2
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    gates = np.loadtxt(tmp_path / "heads" / "full_attention_heads.tsv", delimiter="\t")
    assert gates.shape == (3, 16)
    assert {(2, 9), (2, 2), (2, 5), (2, 13)} <= {(int(a), int(b)) for a, b in np.argwhere(gates > 0.5)}
