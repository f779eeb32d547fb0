"""Encoders attend in both directions and answer nothing: their attention is their own eager weights."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertConfig, BertLMHeadModel

import probe
from probe.errors import NotReproducible, UsageError
from probe.hooks.models.encoder import EncoderModel
from probe.hooks.models.huggingface import load
from probe.kernels.dense import Dense
from probe.sample import Sample, Span

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.3, "embedding_size": 16,
    "dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4, "local_attention": 8, "bos_token_id": 1,
    "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
KINDS = ["bert", "roberta", "modernbert", "electra", "distilbert"]


def make(kind: str, attention: str = "sdpa", auto: Any = AutoModelForMaskedLM, **changes: Any) -> Any:
    known = AutoConfig.for_model(kind)
    fields = {name: value for name, value in {**SIZES, **changes}.items() if hasattr(known, name)}
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, **fields), attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def eager_weights(kind: str, auto: Any, like: Any, **inputs: Any) -> Any:
    model = make(kind, "eager", auto)
    model.load_state_dict(like.state_dict())
    with torch.no_grad():
        return model(**inputs, output_attentions=True).attentions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("attention", "auto"), [("sdpa", AutoModelForMaskedLM), ("eager", AutoModel)])
def test_each_sample_of_a_padded_batch_attends_as_eager_says(kind: str, attention: str, auto: Any) -> None:
    model = make(kind, attention, auto)
    ids = torch.randint(5, 61, (3, 30), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 22:], mask[2, :3] = 0, 0
    weights = eager_weights(kind, auto, model, input_ids=ids, attention_mask=mask)
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask)[0]
        seen: list[tuple[int, int]] = []

        def check(sample: int, call: Any) -> None:
            start, stop = ((0, 30), (0, 22), (3, 30))[sample]
            wanted = weights[call.layer][sample, :, start:stop, start:stop]
            assert (Dense(call).probability - wanted).abs().max() < 2e-6
            assert (call.part, call.phase, call.causal, call.query_start) == ("self", "prefill", False, 0)
            seen.append((sample, call.layer))

        with load(model).calls(check):
            after = model(input_ids=ids, attention_mask=mask)[0]
    assert sorted(seen) == [(sample, layer) for sample in range(3) for layer in range(3)]
    assert torch.equal(before, after)


def test_the_local_layers_of_modernbert_are_windows() -> None:
    windows: dict[int, int | None] = {}
    model = load(make("modernbert"))
    with model.calls(lambda _, call: windows.update({call.layer: call.window})):
        model.read(range(5, 45))
    # A window of 8 looks at 4 tokens on either side, and at the query's own.
    assert windows == {0: None, 1: 5, 2: 5}


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_trace_of_an_encoder_is_its_attention_in_both_directions(kind: str) -> None:
    model, tokens = make(kind), list(range(5, 45))
    trace = probe.trace(
        model, tokens, statistics=["entropy", "received_mass", "mean_distance", "key_norm"], queries_and_keys=[1]
    )
    weights = eager_weights(kind, AutoModelForMaskedLM, model, input_ids=torch.tensor([tokens]))
    for layer in range(3):
        p = weights[layer][0].double().numpy()
        entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
        distance = abs(np.arange(40)[:, None] - np.arange(40))
        np.testing.assert_allclose(trace["entropy"].values[layer], entropy, atol=1e-5)
        np.testing.assert_allclose(trace["received_mass"].values[layer], p.sum(1), atol=1e-5)
        np.testing.assert_allclose(trace["mean_distance"].values[layer], (p * distance).sum(-1), atol=1e-4)
    np.testing.assert_allclose(trace.window(1, 2), weights[1][0, 2].numpy(), atol=1e-5)
    assert trace.num_queries == 40


def test_an_encoder_answers_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    sample = Sample("asked", tuple(range(5, 45)), (Span("needle", 3, 6),), answer_tokens=(7,))
    model = load(make("bert"))
    with caplog.at_level(logging.INFO, logger="probe"):
        trace = probe.trace(model, sample, statistics=["entropy", "span_mass", "loss"])
    assert "an encoder: it answers nothing" in caplog.text
    assert "no loss, span_mass" in caplog.text or "no span_mass, loss" in caplog.text
    assert "entropy" in trace
    assert "loss" not in trace
    assert "span_mass" not in trace
    assert trace.outcome is not None
    assert trace.outcome.correct is None
    assert trace.outcome.text_loss is None
    assert trace.outcome.response_tokens == ()
    for asked in (lambda: model.prefill([5]), lambda: model.step(None, [5]), lambda: model.mark(None)):
        with pytest.raises(NotReproducible, match="predicts no next token and answers nothing"):
            asked()


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM])
def test_a_saved_encoder_opens_as_what_it_is(kind: str, auto: Any, tmp_path: Any) -> None:
    model = make(kind, auto=auto)
    model.save_pretrained(tmp_path)
    opened = load(str(tmp_path))
    assert type(opened) is EncoderModel
    assert type(opened.hf) is type(model)
    assert torch.equal(opened.read(range(5, 20)), load(model).read(range(5, 20)))


def test_what_looks_like_an_encoder_by_its_architecture_is_told_by_how_it_attends() -> None:
    config = BertConfig(**{name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size")},
                        num_attention_heads=4, num_hidden_layers=1)  # fmt: skip
    assert type(load(BertLMHeadModel(config))) is EncoderModel
    config.is_decoder = True
    assert type(load(BertLMHeadModel(config))) is not EncoderModel


def test_roberta_takes_two_tokens_fewer_than_it_has_positions() -> None:
    model = load(make("roberta", pad_token_id=1))
    assert model.max_length == 62
    assert len(model.read([5] * 62)) == 62
    with pytest.raises(UsageError, match="at most 62 tokens, not 63"):
        model.read([5] * 63)


@pytest.mark.parametrize(("kind", "changes"), [("longformer", {"attention_window": 8}), ("albert", {})])
def test_attention_of_another_kind_is_refused_by_name(kind: str, changes: dict[str, Any]) -> None:
    model = make(kind, "eager", AutoModel, **changes)
    with pytest.raises(NotReproducible, match=type(model).__name__), load(model).calls(None):
        pass


def test_nan_in_an_encoder_is_said() -> None:
    model = make("bert")
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "layer.1" in name).fill_(torch.nan)
    trace = probe.trace(model, list(range(5, 25)), statistics=["entropy"])
    assert trace.outcome is not None
    assert trace.outcome.failed is not None
    assert trace.non_finite[0]["layer"] == 1
