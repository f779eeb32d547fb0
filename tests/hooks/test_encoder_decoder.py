"""Encoder-decoders: three attentions, each held against the model's own eager weights."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    T5Config,
    T5EncoderModel,
    T5Model,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import probe
from probe.errors import MissingStatistic, NotReproducible, UsageError
from probe.hooks.ablate_heads import ablate_heads
from probe.hooks.attention import relative_bias
from probe.hooks.intervention import Intervention
from probe.hooks.models.encoder import EncoderModel
from probe.hooks.models.encoder_decoder import EncoderDecoderModel
from probe.hooks.models.huggingface import load
from probe.kernels.dense import Dense
from probe.sample import Sample, Span

T5_SIZES: dict[str, Any] = {
    "vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART_SIZES: dict[str, Any] = {
    "vocab_size": 61, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
    "scale_embedding": False,
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6, "attn_logit_softcapping": None,
}  # fmt: skip
T5GEMMA_SIZES = {
    "encoder": {**_GEMMA, "num_hidden_layers": 2},
    "decoder": {**_GEMMA, "num_hidden_layers": 3, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    "vocab_size": 61, "decoder_start_token_id": 2,
}  # fmt: skip
KINDS = {
    "t5": ("t5", T5_SIZES),
    "t5, odd heads and gated": (
        "t5", {**T5_SIZES, "num_heads": 3, "d_kv": 5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    ),
    "mt5": ("mt5", T5_SIZES),
    "umt5": ("umt5", T5_SIZES),
    "t5gemma": ("t5gemma", T5GEMMA_SIZES),
    "bart": ("bart", BART_SIZES),
    "marian": ("marian", BART_SIZES),
    "pegasus": ("pegasus", BART_SIZES),
    "mbart": ("mbart", {**BART_SIZES, "forced_bos_token_id": 5}),
    "m2m_100": ("m2m_100", BART_SIZES),
}  # fmt: skip
EQUAL = {"num_decoder_layers": 2, "decoder_layers": 2}
"""transformers' own generation takes the encoder's number of layers for the decoder's."""


def make(kind: str, attention: str = "sdpa", **changes: Any) -> Any:
    model_type, sizes = KINDS[kind]
    # T5Gemma takes no other.
    attention = "eager" if kind == "t5gemma" else attention
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**sizes, **{k: v for k, v in changes.items() if k in sizes}})
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def eager(like: Any, **inputs: Tensor) -> dict[str, Any]:
    """The weights of the same model with eager attention, by part."""
    model = type(like)._from_config(like.config, attn_implementation="eager")
    model.load_state_dict(like.state_dict())
    with torch.no_grad():
        output = model.eval()(**inputs, output_attentions=True)
    parts = {"self": "decoder_attentions", "encoder": "encoder_attentions", "cross": "cross_attentions"}
    return {part: getattr(output, name) for part, name in parts.items()}


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 61, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_of_a_padded_batch_attends_as_eager_says(kind: str, attention: str) -> None:
    model = make(kind, attention)
    inputs = {"input_ids": ids(3, 40), "decoder_input_ids": ids(3, 9, seed=1)}
    mask, decoder_mask = torch.ones(3, 40, dtype=torch.long), torch.ones(3, 9, dtype=torch.long)
    mask[0, 29:], mask[1, :6], decoder_mask[2, 7:] = 0, 0, 0
    inputs |= {"attention_mask": mask, "decoder_attention_mask": decoder_mask}
    weights = eager(model, **inputs)
    text, asked = ((0, 29), (6, 40), (0, 40)), ((0, 9), (0, 9), (0, 7))
    axes = {"encoder": (text, text), "self": (asked, asked), "cross": (asked, text)}
    rows: dict[tuple[int, str, int], int] = {}

    def check(sample: int, call: Any) -> None:
        (row, last), (column, stop) = (each[sample] for each in axes[call.part])
        first = row + call.query_start
        keys = slice(column + call.key_start, column + call.key_start + call.num_keys)
        wanted = weights[call.part][call.layer][sample, :, first : first + call.num_queries, keys]
        assert (Dense(call).probability - wanted).abs().max() < 2e-6, (call.part, call.layer)
        assert call.causal == (call.part == "self")
        assert call.part != "encoder" or (call.phase == "prefill" and call.num_keys == stop - column)
        # The last token of the decoder's text decodes.
        assert call.part == "encoder" or (call.phase == "decode") == (call.query_start == last - row - 1)
        key = sample, call.part, call.layer
        rows[key] = rows.get(key, 0) + call.num_queries

    with torch.no_grad():
        before = model(**inputs).logits
        with load(model).calls(check):
            after = model(**inputs).logits
    assert torch.equal(before, after)
    layers = {"encoder": 2, "self": 3, "cross": 3}
    assert rows == {
        (sample, part, layer): (text if part == "encoder" else asked)[sample][1]
        - (text if part == "encoder" else asked)[sample][0]
        for sample in range(3)
        for part, number in layers.items()
        for layer in range(number)
    }


@pytest.mark.parametrize("kind", ["t5", "umt5", "bart", "mbart"])
def test_decoding_on_the_cache_equals_one_forward_and_generation(kind: str) -> None:
    model, text = make(kind, **EQUAL), ids(50)
    loaded = load(model)
    assert isinstance(loaded, EncoderDecoderModel)
    calls: list[Any] = []
    with loaded.calls(lambda _, call: calls.append(call)):
        state = loaded.prefill(text.tolist())
        answer = [loaded.start_tokens[-1]]
        for _ in range(6):
            answer.append(int(loaded.step(state, answer[-1:])[-1].argmax()))
    whole = [*loaded.start_tokens[:-1], *answer]
    generated = model.generate(input_ids=text[None], max_new_tokens=len(whole) - 1, do_sample=False, num_beams=1)
    until_eos = generated[0].tolist()
    assert whole[: len(until_eos)] == until_eos
    weights = eager(model, input_ids=text[None], decoder_input_ids=torch.tensor([whole[:-1]]))
    for call in calls:
        wanted = weights[call.part][call.layer][0, :, call.query_start : call.query_start + call.num_queries]
        assert (Dense(call).probability - wanted[..., : call.num_keys]).abs().max() < 5e-6, (call.part, call.layer)
        if call.part == "cross":
            assert call.num_keys == 50
    decoded = {call.query_start for call in calls if call.part == "cross" and call.phase == "decode"}
    assert decoded == set(range(len(loaded.start_tokens) - 1, len(whole) - 1))


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_going_back_is_never_having_gone_on(kind: str) -> None:
    loaded, text = load(make(kind)), ids(30).tolist()
    state = loaded.prefill(text)
    start, beginning = loaded.start_tokens[-1], loaded.mark(state)
    first = loaded.step(state, [start, 9, 8])
    loaded.rollback(state, beginning)
    assert torch.equal(loaded.step(state, [start, 9, 8]), first)
    middle = loaded.mark(state)
    ahead = loaded.step(state, [7])
    loaded.step(state, [5, 6])
    loaded.rollback(state, middle)
    assert torch.equal(loaded.step(state, [7]), ahead)


@pytest.mark.parametrize("kind", ["t5", "umt5"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_is_the_models_own_at_every_distance(kind: str, bidirectional: bool) -> None:
    model = make(kind)
    stack = model.get_encoder() if bidirectional else model.get_decoder()
    module = next(m for m in stack.modules() if getattr(m, "has_relative_attention_bias", False))
    for num_past, num_queries, num_keys in ((0, 90, 90), (40, 3, 43), (70, 1, 71)):
        wanted = module.compute_bias(num_queries, num_keys, past_seen_tokens=num_past)
        with relative_bias.biases_as_tables(model):
            table = module.compute_bias(num_queries, num_keys, past_seen_tokens=num_past)
        # Far fewer entries than the 90 × 90 of the matrix, whatever the length.
        assert table.table.shape == (4, 41)
        assert torch.equal(table.rows(0, num_queries), wanted)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_long_text_goes_through_in_rows_and_comes_out_the_same(attention: str, monkeypatch: Any) -> None:
    model, text, answer = make("t5", attention), ids(1, 200), ids(1, 70, seed=1)
    made: list[int] = []
    own = relative_bias.relative_bias.rows
    monkeypatch.setattr(
        relative_bias.relative_bias,
        "rows",
        lambda self, first, stop: made.append(stop - first) or own(self, first, stop),
    )
    calls: list[Any] = []
    with torch.no_grad():
        before = model(input_ids=text, decoder_input_ids=answer).logits
        monkeypatch.setattr(relative_bias, "_MATRIX_CELLS", 4 * 200 * 16)
        with load(model).calls(lambda _, call: calls.append(call)):
            after = model(input_ids=text, decoder_input_ids=answer).logits
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-5)
    assert max(made) < 70
    weights = eager(model, input_ids=text, decoder_input_ids=answer)
    for call in calls:
        wanted = weights[call.part][call.layer][0, :, call.query_start : call.query_start + call.num_queries]
        assert (Dense(call).probability - wanted[..., : call.num_keys]).abs().max() < 5e-6
        # Several operators took the queries in turn, and said as much as one.
        handed = attention == "sdpa" and call.part == "encoder"
        assert not handed or torch.allclose(call.log_sum_exp.double(), Dense(call).log_sum_exp, atol=1e-5)


def test_a_bias_that_goes_on_changing_is_refused() -> None:
    model = make("t5")
    block = model.encoder.block[0].layer[0].SelfAttention
    own = type(block)._relative_position_bucket
    block._relative_position_bucket = lambda distance, max_distance, **given: own(distance, max_distance=500, **given)
    with pytest.raises(NotReproducible, match="goes on changing beyond distance 20"), load(model).calls(None):
        pass


SAMPLE = Sample("asked", tuple(range(3, 43)), (Span("needle", 5, 9),), answer_tokens=(7, 8, 9))


@pytest.fixture(scope="module", params=["t5", "mbart"])
def traced(request: pytest.FixtureRequest) -> Any:
    model = make(request.param, **EQUAL)
    trace = probe.trace(model, SAMPLE, queries_and_keys=[0], max_new_tokens=4)
    start = load(model).start_tokens
    fed = torch.tensor([[*start, *trace.outcome.response_tokens[:-1]]])
    return model, trace, eager(model, input_ids=torch.tensor([SAMPLE.tokens]), decoder_input_ids=fed), fed


def test_a_trace_has_three_attentions(traced: Any) -> None:
    _, trace, weights, fed = traced
    assert trace.parts == ("cross", "encoder")
    for part, each in (("self", trace), ("encoder", trace.part("encoder")), ("cross", trace.part("cross"))):
        for layer in range(2):
            p = weights[part][layer][0].double().numpy()
            entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
            np.testing.assert_allclose(each["entropy"].values[layer], entropy, atol=1e-5)
            np.testing.assert_allclose(each["received_mass"].values[layer], p.sum(1), atol=1e-5)
        np.testing.assert_allclose(each.window(0, 1), weights[part][0][0, 1].numpy(), atol=1e-5)
        assert each.num_queries == p.shape[1]
    assert trace["entropy"].sizes["query"] == fed.shape[1]
    assert trace.part("cross")["received_mass"].sizes["key"] == len(SAMPLE)
    assert "mean_distance" in trace.part("encoder")


def test_where_the_answer_looks_is_what_the_cross_attention_says(traced: Any) -> None:
    _, trace, weights, fed = traced
    cross, first = trace.part("cross"), fed.shape[1] - 4
    for layer in range(2):
        p = weights["cross"][layer][0, :, first:].numpy()
        mass = cross["span_mass"].sel(span="needle").values[layer]
        np.testing.assert_allclose(mass, p[..., 5:9].sum(-1), atol=1e-5)
        assert (cross["top_keys_k_1"].values[layer, ..., 0] == p.argmax(-1)).all()
    for name in ("mean_distance", "recent_mass", "offset_mass", "distance_histogram", "match_mass"):
        assert name not in cross
    assert "span_mass" not in trace
    with pytest.raises(MissingStatistic, match="'span_mass'"):
        trace["span_mass"]


def test_the_answer_is_judged_and_its_probability_is_the_models(traced: Any) -> None:
    model, trace, _, _ = traced
    start = load(model).start_tokens
    with torch.no_grad():
        given = torch.tensor([[*start, *SAMPLE.answer_tokens[:-1]]])
        logits = model(input_ids=torch.tensor([SAMPLE.tokens]), decoder_input_ids=given).logits[0, len(start) - 1 :]
    wanted = logits.log_softmax(-1)[range(3), SAMPLE.answer_tokens]
    np.testing.assert_allclose(trace.outcome.answer_log_probability, wanted.numpy(), atol=1e-5)
    assert trace.outcome.correct in (True, False)
    assert trace.outcome.text_loss is None
    tokens = [*start, *trace.outcome.response_tokens]
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([SAMPLE.tokens]), decoder_input_ids=torch.tensor([tokens[:-1]])).logits[0]
    losses = torch.nn.functional.cross_entropy(whole[:-1], torch.tensor(tokens[1:-1]), reduction="none")
    np.testing.assert_allclose(trace["loss"].values[1:], losses.numpy(), atol=1e-5)
    assert trace["loss"].sizes["token"] == len(tokens) - 1


def test_analyses_take_a_part_as_any_trace(traced: Any, tmp_path: Any) -> None:
    _, trace, _, _ = traced
    found = probe.attention_sinks(trace.part("encoder"))
    assert found.claim
    assert probe.open(trace.save(tmp_path / "saved")).part("cross")["entropy"].equals(trace.part("cross")["entropy"])


def test_a_head_of_the_decoders_own_attention_is_not_asked_where_the_text_has_the_answer() -> None:
    model = load(make("t5"))
    spans = (Span("needle", 5, 9), Span("needle_value", 5, 9))
    given = Sample("asked", tuple(range(3, 43)), spans, answer_tokens=(7, 8, 9))
    said = probe.trace(model, given, statistics=[]).outcome.response_tokens
    trace = probe.trace(model, dataclasses.replace(given, answer_tokens=said), statistics=[probe.retrieval_heads])
    own, cross = probe.retrieval_heads(trace), probe.retrieval_heads(trace.part("cross"))
    assert (own.measured.n, cross.measured.n) == (0, 1)
    assert any('trace.part("cross")' in note for note in own.notes)


def test_layers_are_asked_for_in_every_part_that_has_them() -> None:
    model = make("t5")
    trace = probe.trace(model, SAMPLE, statistics=[{"entropy": {"layers": [2]}}, {"max_logit": {"layers": [0]}}])
    assert trace.parts == ("cross", "encoder")
    assert "entropy" in trace.layer(2)
    assert "entropy" in trace.part("cross").layer(2)
    assert "max_logit" in trace.part("encoder").layer(0)
    with pytest.raises(MissingStatistic):
        trace.part("encoder").layer(2)
    with pytest.raises(UsageError, match=r"no part of .* has layer 3"):
        probe.trace(model, SAMPLE, statistics=[{"entropy": {"layers": [3]}}])


def test_pooling_is_of_what_is_long() -> None:
    trace = probe.trace(make("t5"), list(range(3, 53)), statistics=["entropy", "key_norm"], pool_tokens=8)
    assert trace["entropy"].sizes["query"] == 1
    assert trace.part("encoder")["entropy"].attrs["block_tokens"] == 8
    assert trace.part("cross")["key_norm"].attrs["block_tokens"] == 8


def test_a_saved_encoder_decoder_opens_as_one(tmp_path: Any) -> None:
    model = make("t5")
    model.save_pretrained(tmp_path)
    opened = load(str(tmp_path))
    assert type(opened) is EncoderDecoderModel
    assert (opened.num_layers, opened.num_heads, opened.max_length) == (3, [4, 4, 4], None)
    assert {part: len(layers) for part, layers in opened.attention_parts.items()} == {
        "self": 3,
        "encoder": 2,
        "cross": 3,
    }


def test_an_encoder_alone_is_an_encoder() -> None:
    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(**T5_SIZES)).eval()
    assert type(load(model)) is EncoderModel
    trace = probe.trace(model, list(range(3, 33)), statistics=["entropy"])
    assert trace["entropy"].shape == (2, 4, 30)
    assert trace.parts == ()


def test_what_it_cannot_do_is_said() -> None:
    loaded = load(make("bart"))
    with pytest.raises(UsageError, match="needs a text"):
        loaded.prefill([])
    with pytest.raises(UsageError, match="at most 128 tokens, not 129"):
        loaded.prefill([5] * 129)
    with pytest.raises(UsageError, match="not for encoder-decoders"):
        loaded.prefill([5], cache="offload")
    headless = load(T5Model(T5Config(**T5_SIZES)))
    with pytest.raises(NotReproducible, match="no head that says which token comes next"):
        headless.step(headless.prefill([5, 6]), [0])
    model = make("bart")
    model.config.decoder_start_token_id = model.config.bos_token_id = None
    model.generation_config.decoder_start_token_id = model.generation_config.bos_token_id = None
    with pytest.raises(UsageError, match="names no decoder_start_token_id"):
        load(model).prefill([5])


def test_an_encoder_that_reads_no_tokens_is_refused() -> None:
    sizes = {**BART_SIZES, "max_source_positions": 30, "num_mel_bins": 8, "encoder_layers": 1, "decoder_layers": 1}
    with pytest.raises(NotReproducible, match="WhisperForConditionalGeneration: its encoder reads no tokens"):
        load(WhisperForConditionalGeneration(WhisperConfig(**sizes)))


@pytest.mark.parametrize("kind", ["longt5", "led", "fsmt"])
def test_attention_of_another_kind_is_refused_by_name(kind: str) -> None:
    known = AutoConfig.for_model(kind)
    sizes = {name: value for name, value in {**T5_SIZES, **BART_SIZES}.items() if hasattr(known, name)}
    sizes |= {"attention_window": 8} if kind == "led" else {}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **sizes), attn_implementation="eager").eval()
    with pytest.raises(NotReproducible, match=type(model).__name__), load(model).calls(None):
        pass


def _removed(model: Any, part: str, layer: int, head: int) -> None:
    """Take the head's columns out of its output projection, which is what a zeroed head amounts to."""
    stack = model.get_encoder() if part == "encoder" else model.get_decoder()
    if model.config.model_type == "bart":
        block = stack.layers[layer]
        projection = (block.encoder_attn if part == "cross" else block.self_attn).out_proj
    else:
        block = stack.block[layer].layer
        projection = block[1].EncDecAttention.o if part == "cross" else block[0].SelfAttention.o
    width = projection.in_features // (2 if model.config.model_type == "bart" and part == "encoder" else 4)
    with torch.no_grad():
        projection.weight[:, head * width : (head + 1) * width] = 0


@pytest.mark.parametrize("part", ["self", "encoder", "cross"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_heads_are_ablated_part_by_part(kind: str, part: str) -> None:
    model, without = make(kind), make(kind)
    _removed(without, part, 1, 1)
    inputs = {"input_ids": ids(2, 30), "decoder_input_ids": ids(2, 6, seed=1)}
    made = Intervention.from_json(json.loads(json.dumps(ablate_heads([(1, 1)], part=part).to_json())))  # type: ignore[arg-type]
    with torch.no_grad():
        before, wanted = model(**inputs).logits, without(**inputs).logits
        with made(model):
            found = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, before)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 1e-3


def test_an_ablation_that_says_no_part_is_the_decoders() -> None:
    made = Intervention.from_json({"ablate_heads": {"heads": [[0, 0]]}})
    assert made == ablate_heads([(0, 0)], part="self")
    with pytest.raises(UsageError, match="part is 'decoder'; expected self, encoder, cross"):
        ablate_heads([(0, 0)], part="decoder")  # type: ignore[arg-type]
    with (
        pytest.raises(UsageError, match=r"no head \(2, 0\); it has 2 layers"),
        ablate_heads([(2, 0)], part="encoder")(make("t5")),
    ):
        pass


def test_a_uniform_head_is_uniform_or_refused() -> None:
    model, weights = make("t5"), {}
    with pytest.raises(UsageError, match="layer 1 adds a bias by distance"), ablate_heads([(1, 1)], "uniform")(model):
        pass
    with ablate_heads([(1, 1)], "uniform", part="cross")(model), load(model).calls(
        lambda _, call: weights.update({(call.part, call.layer): Dense(call).probability})
    ), torch.no_grad():  # fmt: skip
        model(input_ids=ids(1, 20), decoder_input_ids=ids(1, 1))
    torch.testing.assert_close(weights["cross", 1][1], torch.full((1, 20), 1 / 20, dtype=torch.float64))
    assert (weights["cross", 1][0] - 1 / 20).abs().max() > 1e-3


def test_a_mean_is_over_texts_that_the_encoder_reads() -> None:
    model, reference = make("t5"), [[5, 6, 7, 8]]
    outputs: list[Tensor] = []
    module = model.encoder.block[0].layer[0].SelfAttention.o
    hook = module.register_forward_pre_hook(lambda _, args: outputs.append(args[0].detach()))
    with torch.no_grad():
        model.get_encoder()(input_ids=torch.tensor(reference))
        mean = outputs[-1][0].mean(0)[:8]
        with ablate_heads([(0, 0)], "mean", reference=reference, part="encoder")(model):
            model.get_encoder()(input_ids=ids(1, 12))
    hook.remove()
    torch.testing.assert_close(outputs[-1][0, :, :8], mean.expand(12, 8), atol=1e-6, rtol=1e-5)
    with (
        pytest.raises(UsageError, match="nothing to average part 'cross' over"),
        ablate_heads([(0, 0)], "mean", reference=reference, part="cross")(model),
    ):
        pass
