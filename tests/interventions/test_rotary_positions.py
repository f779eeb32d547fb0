"""What changes of rotary positions share: transformers' own scaling as the truth, and what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

import probe
from probe.errors import UsageError
from probe.hooks.interpolate_positions import interpolate_positions
from probe.hooks.limit_distance import limit_distance
from probe.hooks.ms_poe import ms_poe
from probe.hooks.ntk_scaling import ntk_scaling
from probe.hooks.randomise_positions import randomise_positions
from probe.hooks.reset_document_positions import reset_document_positions
from probe.hooks.self_extend import self_extend
from probe.hooks.yarn import yarn
from probe.kernels.attention_output import attention_output
from probe.kernels.call import Call
from probe.kernels.scores import Scores
from probe.sample import Sample, Span
from tests.interventions.definitions.ms_poe import factors
from tests.interventions.definitions.reset_document_positions import places
from tests.interventions.dense_model import TRAINED, gpt2, llama, tokens

ALL = [
    interpolate_positions(2),
    ntk_scaling(2),
    yarn(2),
    self_extend(2, window=4),
    ms_poe(first_layer=0),
    randomise_positions(500),
    reset_document_positions(documents=[(0, 4), (4, 9)]),
]
SAMPLE = Sample("one", tuple(tokens(20)))


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def scaled(model: PreTrainedModel, **rope: Any) -> PreTrainedModel:
    """The same weights with transformers' own scaling of rotary positions."""
    config = copy.deepcopy(model.config)
    config.rope_parameters = {"rope_theta": 10000.0, **rope}
    made = LlamaForCausalLM(config).eval()
    made.load_state_dict(model.state_dict())
    return made


@pytest.mark.parametrize(
    ("intervention", "rope"),
    [
        (interpolate_positions(4), {"rope_type": "linear", "factor": 4.0}),
        (interpolate_positions(), {"rope_type": "linear", "factor": 200 / TRAINED}),
        (ntk_scaling(dynamic=True), {"rope_type": "dynamic", "factor": 1.0}),
        (ntk_scaling(3, dynamic=True), {"rope_type": "dynamic", "factor": 3.0}),
        (ntk_scaling(8), {"rope_type": "default", "rope_theta": 10000.0 * 8 ** (16 / 14)}),
        (yarn(4), {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED}),
        (
            yarn(16, training_length=4096, beta_fast=16, beta_slow=2),
            {
                "rope_type": "yarn",
                "factor": 16.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
            },
        ),
    ],
)
def test_transformers_own_scaling_gives_the_same(intervention: Any, rope: dict[str, Any]) -> None:
    model, ids = llama(), tokens(200)
    expected = logits(scaled(model, **rope), ids)
    assert (expected - logits(model, ids)).abs().max() > 0.1
    with intervention(model):
        torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)


def test_interpolation_of_a_scaled_model_divides_its_positions() -> None:
    model, ids = llama(), tokens(150)
    twice = scaled(model, rope_type="linear", factor=2.0)
    with interpolate_positions(3)(twice):
        found = logits(twice, ids)
    torch.testing.assert_close(found, logits(scaled(model, rope_type="linear", factor=6.0), ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("intervention", [ntk_scaling(2), yarn(2)])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": TRAINED,
        },
    ],
)
def test_another_base_of_a_scaled_model_is_refused(intervention: Any, rope: dict[str, Any]) -> None:
    model = scaled(llama(), **rope)
    with pytest.raises(UsageError, match=f"{type(intervention).__name__}: .*scaled already"), intervention(model):
        pass


@pytest.mark.parametrize("intervention", [*ALL, limit_distance(8)], ids=lambda each: type(each).__name__)
def test_frequencies_that_depend_on_the_length_are_refused(intervention: Any) -> None:
    model = scaled(llama(), rope_type="dynamic", factor=2.0)
    with pytest.raises(UsageError, match=f"{type(intervention).__name__}: .*'dynamic'"), intervention(model):
        pass


@pytest.mark.parametrize("intervention", ALL, ids=lambda each: type(each).__name__)
def test_a_model_without_rotary_positions_is_refused_before_the_run(intervention: Any) -> None:
    model = gpt2()
    with pytest.raises(UsageError, match=f"{type(intervention).__name__}: GPT2LMHeadModel has no rotary positions"):
        intervention.check(model, SAMPLE)
    with pytest.raises(UsageError, match="has no rotary positions"), intervention(model):
        pass


@pytest.mark.parametrize("intervention", ALL, ids=lambda each: type(each).__name__)
def test_decoding_on_a_cache_gives_what_one_forward_gives(intervention: Any) -> None:
    model, ids = llama(), tokens(90)
    with intervention(model), torch.no_grad():
        # The prompt is 80 tokens, in either way.
        state = (loaded := probe.load(model)).prefill(ids[:79], whole=80)
        decoded = torch.cat([loaded.step(state, [token]) for token in ids[79:]])
        fresh = loaded.prefill(ids[:79], whole=80)
        at_once = loaded.step(fresh, ids[79:])
    torch.testing.assert_close(decoded, at_once, rtol=1e-4, atol=1e-4)


def test_dynamic_scaling_turns_every_cached_key_to_the_length_of_the_moment() -> None:
    # In one layer nothing remains of the lengths at which earlier tokens were read.
    model, ids = llama(), tokens(90)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    with ntk_scaling(dynamic=True)(model), torch.no_grad():
        whole = model(torch.tensor([ids])).logits[0, -1]
        cache = model(torch.tensor([ids[:1]]), use_cache=True).past_key_values
        for token in ids[1:]:
            last = model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
    torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-4)


def test_a_prompt_length_that_nobody_knows_is_asked_for() -> None:
    model, ids = llama(), tokens(90)
    with interpolate_positions()(model), torch.no_grad():
        cache = model(torch.tensor([ids[:50]]), use_cache=True).past_key_values
        with pytest.raises(UsageError, match="interpolate_positions: factor: how long the prompt is"):
            model(torch.tensor([ids[50:]]), past_key_values=cache)


def test_generate_keeps_the_prompts_factor() -> None:
    model, ids = llama(), tokens(100)
    fixed, auto = interpolate_positions(100 / TRAINED), interpolate_positions()
    found = []
    for intervention in (fixed, auto):
        with intervention(model):
            given = torch.tensor([ids])
            made = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=8, do_sample=False)
            found.append(made[0].tolist())
    assert found[0] == found[1]


def test_each_sample_of_a_batch_has_its_own_prompt_length() -> None:
    model, long, short = llama(), tokens(120, 1), tokens(80, 2)
    with interpolate_positions()(model), torch.no_grad():
        alone = [logits(model, ids) for ids in (long, short)]
        batch = torch.tensor([long, [0] * 40 + short])
        mask = torch.ones_like(batch)
        mask[1, :40] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        both = model(batch, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(both[0], alone[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[1, 40:], alone[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("intervention", ALL, ids=lambda each: type(each).__name__)
def test_a_half_precision_model(intervention: Any) -> None:
    """Turned keys stay in float32: what is off is what rounding the weights costs anyway."""
    exact, ids = llama(), tokens(60)
    half = copy.deepcopy(exact).to(torch.bfloat16)
    # transformers keeps the frequencies of a model that it loads in half precision.
    half.model.rotary_emb.inv_freq = exact.model.rotary_emb.inv_freq.clone()
    rounding = (logits(half, ids).float() - logits(exact, ids)).abs().mean()
    with intervention(exact):
        expected = logits(exact, ids)
    with intervention(half):
        found = logits(half, ids)
        trace = probe.trace(half, ids, statistics=["entropy"], max_new_tokens=1, check=False)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 2 * rounding
    assert trace["entropy"].notnull().all()


@pytest.mark.parametrize(("group", "window"), [(4, 16), (8, 24), (3, 12)])
def test_self_extend_is_continuous_where_the_window_ends(group: int, window: int) -> None:
    """The first grouped distance, window, is the true one where the group divides both positions: so is the logit."""
    draw = torch.Generator().manual_seed(group)
    query, key = (torch.randn(heads, 60, 16, generator=draw) for heads in (4, 2))
    call = Call(0, query, key, key, 0.25)
    change: Any = self_extend(group, window).change(llama())
    scores = Scores(change(None, 0, call))
    out = torch.empty(2, 2 * 60, 60)
    found = scores.logits(scores.query(0, 60), scores.key(0, 60), 0, 0, out)
    true = query @ key.repeat_interleave(2, 0).transpose(1, 2) * 0.25
    at = torch.arange(0, 60 - window, group)
    at = at[(at + window) % group == 0]
    assert len(at) > 3
    torch.testing.assert_close(found[:, at + window, at], true[:, at + window, at], rtol=1e-5, atol=1e-5)
    # Beyond it, distances are others.
    assert (found[:, at[2:] + window, at[:-2]] - true[:, at[2:] + window, at[:-2]]).abs().max() > 0.1


def test_randomised_positions_are_a_fair_draw() -> None:
    """Each place of the range is as likely: an expected count of 200 with its binomial spread."""
    draws = torch.cat([randomise_positions(50, seed=seed).positions(20) for seed in range(500)])
    counts = torch.bincount(draws.long(), minlength=50)
    assert int(counts.sum()) == 10_000
    spread = (500 * 0.4 * 0.6) ** 0.5
    assert float((counts - 200).abs().max()) < 4.5 * spread
    with pytest.raises(UsageError, match="range_tokens=50 has no room for a prompt of 51 tokens"):
        randomise_positions(50).check(llama(), Sample("long", tuple(tokens(51))))


def test_documents_of_a_sample_are_its_spans() -> None:
    model, ids = llama(), tokens(60)
    spans = (Span("document_1", 20, 35), Span("document_0", 5, 18), Span("question", 40, 60))
    sample = Sample("docs", tuple(ids), spans=spans)
    given = reset_document_positions(documents=[(5, 18), (20, 35)])
    found = []
    for intervention in (reset_document_positions(), given):
        with intervention(model):
            trace = probe.trace(model, sample, statistics=["entropy"], max_new_tokens=1, check=False)
            found.append(torch.from_numpy(trace["entropy"].values))
    assert torch.equal(*found)
    with pytest.raises(UsageError, match="one has no spans document_0"):
        reset_document_positions().check(model, SAMPLE)
    with pytest.raises(UsageError, match="nobody said which sample"), reset_document_positions()(model):
        logits(model, ids)


def test_where_documents_stand() -> None:
    position, document = places([(2, 4), (5, 8)], 10)
    #                    0  1  2  3  .  5  6  7  q  q
    assert position == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert document == [-1, -1, 0, 0, 0, 1, 1, 1, -1, -1]


def test_the_three_orders_of_ms_poe() -> None:
    """Shares .2, .6, .4 by construction: head 1 spreads most, then 2, then 0; the code's order is its inverse."""
    row = torch.zeros(3, 10)
    for head, count in ((0, 2), (1, 6), (2, 4)):
        row[head, :count] = 50
    logits = row[:, None].expand(3, 11, 10).double()
    logits = torch.cat([logits, torch.full((3, 11, 1), -1e9)], -1)
    by_rank = factors(ms_poe(r_min=1, r_max=4, threshold=1.1), logits)
    by_code = factors(ms_poe(r_min=1, r_max=4, threshold=1.1, order="code"), logits)
    assert by_rank.tolist() == [3, 1, 2]
    assert by_code.tolist() == [2, 3, 1]


def test_ms_poe_refuses_a_prompt_in_chunks() -> None:
    model, ids = probe.load(llama()), tokens(90)
    with ms_poe(first_layer=0)(model), pytest.raises(UsageError, match=r"chunk_tokens=89"):
        model.prefill(ids[:-1], chunk_tokens=30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: interpolate_positions(0.5), "factor is a number, at least 1"),
        (lambda: interpolate_positions(training_length=0), "training_length is at least 1"),
        (lambda: ntk_scaling(0), "alpha is a number, at least 1"),
        (lambda: yarn(2, beta_slow=33), "beta_slow lies above 0"),
        (lambda: yarn("half"), "factor is a number, at least 1, or 'auto'"),
        (lambda: self_extend(0, window=4), "group is a whole number, at least 1"),
        (lambda: ms_poe(r_min=2), "r_min <= r_max"),
        (lambda: ms_poe(order="best"), "order is 'best'"),
        (lambda: randomise_positions(0), "range_tokens is a whole number"),
        (lambda: reset_document_positions(documents=[(0, 5), (4, 9)]), "do not overlap"),
    ],
)
def test_impossible_fields_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("num_queries", [1, 7, 30])
def test_turned_vectors_beside_half_precision_values(num_queries: int) -> None:
    """The log-sum-exp is exact to float32, the output rounded once, whichever operator computes them."""
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(heads, n, 16, generator=draw) for heads, n in ((4, num_queries), (2, 30)))
    value = torch.randn(2, 30, 16, generator=draw).bfloat16()
    call = Call(0, query, key, value, 0.25, query_start=30 - num_queries)
    wide_key, wide_value = (each.double().repeat_interleave(2, 0) for each in (key, value))
    dense = query.double() @ wide_key.transpose(1, 2) * 0.25
    dense = dense.masked_fill(torch.ones(num_queries, 30, dtype=torch.bool).triu(31 - num_queries), -torch.inf)
    output, log_sum_exp = attention_output(call)
    assert output.dtype == torch.bfloat16
    assert log_sum_exp is not None
    torch.testing.assert_close(log_sum_exp.double(), dense.logsumexp(-1), rtol=1e-5, atol=1e-5)
    expected = (dense.softmax(-1) @ wide_value).transpose(0, 1)
    torch.testing.assert_close(output.double(), expected, rtol=2**-8, atol=1e-5)
