"""Temperature, top-k, sinks and caps where one call says it all: beside what a model has already, ties, blocks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import ChangeOfCalls
from probe.hooks.cap_logits import cap_logits
from probe.hooks.insert_sink import insert_sink
from probe.hooks.limit_distance import limit_distance
from probe.hooks.log_length_scaling import log_length_scaling
from probe.hooks.remove_sink import remove_sink
from probe.hooks.sharpen_top_k import sharpen_top_k
from probe.hooks.temperature import temperature
from probe.kernels.attention_output import attention_output
from probe.kernels.call import Call
from tests.interventions.dense_model import llama, tokens


def call(num_tokens: int = 40, **fields: Any) -> Call:
    torch.manual_seed(4)
    query, key, value = (torch.randn(heads, num_tokens, 8) for heads in (4, 2, 2))
    return Call(layer=0, query=2 * query, key=key, value=value, scale=0.35, **fields)


def changed(intervention: ChangeOfCalls, before: Call) -> Call:
    return intervention.change(llama())(None, 0, before)  # type: ignore[arg-type]


def dense(before: Call, of_logits: Any, sink: Tensor | None = None) -> Tensor:
    """Output [query head channel] in float64, of logits and a learned sink's logit as they are."""
    key, value = (each.double().repeat_interleave(2, 0) for each in (before.key, before.value))
    logits = before.query.double() @ key.transpose(1, 2) * before.scale
    if before.softcap is not None:
        logits = before.softcap * (logits / before.softcap).tanh()
    distance = torch.arange(logits.shape[1])[:, None] - torch.arange(logits.shape[2])
    if before.alibi_slope is not None:
        logits = logits - before.alibi_slope.double()[:, None, None] * distance
    logits = of_logits(logits).masked_fill(distance < 0, -torch.inf)
    nothing = torch.full((4, logits.shape[1], 1), -torch.inf, dtype=torch.float64)
    if sink is not None:
        nothing = sink.double()[:, None, None].expand_as(nothing)
    return (torch.cat([logits, nothing], -1).softmax(-1)[..., :-1] @ value).transpose(0, 1)


SLOPE, SINK = torch.tensor([0.5, 0.25, 0.125, 0.0625]), torch.tensor([0.3, -1.0, 2.0, 0.0])


@pytest.mark.parametrize("fields", [{}, {"softcap": 1.5}, {"alibi_slope": SLOPE}, {"sink_logit": SINK}])
def test_temperature_divides_all_that_enters_the_softmax(fields: dict[str, Any]) -> None:
    before = call(**fields)
    sink = None if before.sink_logit is None else before.sink_logit / 0.4
    expected = dense(before, lambda logits: logits / 0.4, sink)
    torch.testing.assert_close(attention_output(changed(temperature(0.4), before))[0], expected.float())


@pytest.mark.parametrize("fields", [{}, {"softcap": 1.5}, {"alibi_slope": SLOPE}, {"sink_logit": SINK}])
def test_a_cap_bounds_all_that_keys_bring(fields: dict[str, Any]) -> None:
    before = call(**fields)
    expected = dense(before, lambda logits: 0.7 * (logits / 0.7).tanh(), before.sink_logit)
    torch.testing.assert_close(attention_output(changed(cap_logits(0.7), before))[0], expected.float())


def test_what_one_hides_no_later_one_shows() -> None:
    near = limit_distance(5, num_first=0, limit=None)
    before = changed(near, call())
    for after in (temperature(1e3), cap_logits(1e-3), sharpen_top_k(3)):
        output = attention_output(changed(after, before))[0]
        # Values further than the window may be anything.
        other = before.value.clone()
        other[:, :30] = 1e3
        again = attention_output(changed(after, dataclasses.replace(before, value=other)))[0]
        assert torch.equal(output[34:], again[34:])


def test_an_inserted_sink_stands_beside_a_learned_one() -> None:
    before = call(sink_logit=SINK)
    weights = SINK.double().exp() + math.exp(0.5)
    expected = dense(before, lambda logits: logits, weights.log())
    torch.testing.assert_close(attention_output(changed(insert_sink(0.5), before))[0], expected.float())


def test_an_inserted_sink_takes_the_share_that_arithmetic_says() -> None:
    """n equal logits of 0 and a sink of 0: n / (n + 1) of the values' mean."""
    before = dataclasses.replace(call(9), query=torch.zeros(4, 9, 8), value=torch.ones(2, 9, 8))
    output = attention_output(changed(insert_sink(), before))[0]
    seen = torch.arange(1.0, 10.0)
    torch.testing.assert_close(output, (seen / (seen + 1))[:, None, None].expand(9, 4, 8))


def test_equal_keys_stay_together() -> None:
    """Of 12 keys that stand twice each, the 3 largest are 4 with their likes, wherever blocks are cut."""
    before = call(24)
    twice = torch.cat([before.key[:, :12]] * 2, 1)
    before = dataclasses.replace(before, key=twice, value=torch.eye(24).expand(2, 24, 24))
    kept = (attention_output(changed(sharpen_top_k(3), before))[0][-1] > 1e-6).sum(-1)
    assert kept.tolist() == [4, 4, 4, 4]


def test_top_k_over_many_blocks_is_that_of_whole_rows() -> None:
    """More keys than a block has, in one decoded query."""
    torch.manual_seed(1)
    key, query = torch.randn(1, 9001, 4), torch.randn(2, 1, 4)
    value = torch.randn(1, 9001, 3)
    before = Call(layer=0, query=query, key=key, value=value, scale=1.0, query_start=9000)
    logits = (query.double() @ key.double().transpose(1, 2))[:, 0]
    best = logits.topk(5)
    weight = best.values.softmax(-1)
    expected = torch.stack([weight[head] @ value[0].double()[best.indices[head]] for head in range(2)])
    torch.testing.assert_close(attention_output(changed(sharpen_top_k(5), before))[0][0], expected.float())


def test_a_sink_out_of_sight_of_a_sliding_cache_is_none_to_remove() -> None:
    before = call(window=4)
    late = dataclasses.replace(before, query=before.query[:, -1:], query_start=139, key_start=100)
    assert changed(remove_sink(4), late) is late
    assert changed(remove_sink(40), before) is before


def test_log_length_takes_what_the_model_says() -> None:
    """This model's configuration says 64 tokens."""
    model, found = llama(), []
    for intervention in (log_length_scaling(), log_length_scaling(64), log_length_scaling(10_000)):
        with torch.no_grad(), intervention(model):
            found.append(model(torch.tensor([tokens(104)])).logits[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0][:64], found[2][:64])
    assert not torch.allclose(found[0][70:], found[2][70:])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: temperature(0.0), "temperature: tau"),
        (lambda: temperature(math.inf), "temperature: tau"),
        (lambda: log_length_scaling(1), "log_length_scaling: training_length"),
        (lambda: sharpen_top_k(0), "sharpen_top_k: k"),
        (lambda: remove_sink(0), "remove_sink: num_tokens"),
        (lambda: insert_sink(math.nan), "insert_sink: logit"),
        (lambda: insert_sink("much"), "insert_sink: logit"),  # type: ignore[arg-type]
        (lambda: cap_logits(-1.0), "cap_logits: cap"),
    ],
)
def test_what_means_nothing_is_refused(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_a_sink_for_each_head_needs_as_many_as_there_are() -> None:
    with (
        pytest.raises(UsageError, match="logit has 3 numbers, and layer 0 4 heads"),
        insert_sink((0.0, 1.0, 2.0))(llama()),
    ):
        pass
