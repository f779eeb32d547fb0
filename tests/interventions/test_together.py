"""Several interventions as one: entered in their order, left bit for bit, and refused where two contradict."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import probe
from probe import discovery
from probe.errors import UsageError
from probe.hooks.ablate_heads import ablate_heads
from probe.hooks.cap_logits import cap_logits
from probe.hooks.interpolate_positions import interpolate_positions
from probe.hooks.intervention import Intervention
from probe.hooks.keep_sinks_and_recent import keep_sinks_and_recent
from probe.hooks.limit_distance import limit_distance
from probe.hooks.temperature import temperature
from probe.hooks.together import together
from probe.sample import Sample

TOKENS = torch.arange(3, 43)[None]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(8)
    return made


def logits(model: Any, *entered: Any) -> torch.Tensor:
    with torch.no_grad(), ExitStack() as stack:
        for each in entered:
            stack.enter_context(each(model))
        return model(TOKENS).logits


def test_it_is_what_nested_blocks_are_and_nothing_is_left(model: Any) -> None:
    before = logits(model)
    parts = [temperature(0.5, layers=[0]), limit_distance(16), ablate_heads([(1, 2)])]
    assert torch.equal(logits(model, together(parts)), logits(model, *parts))
    assert not torch.allclose(logits(model, together(parts)), logits(model, *parts[:2]))
    assert torch.equal(logits(model), before)


def test_the_first_is_entered_first(model: Any) -> None:
    # A logit that is capped and then divided is another than one that is divided and then capped.
    capped, divided = cap_logits(1.0), temperature(0.25)
    one, other = logits(model, together([capped, divided])), logits(model, together([divided, capped]))
    assert torch.equal(one, logits(model, capped, divided))
    assert torch.equal(other, logits(model, divided, capped))
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_body_that_raises_leaves_the_model_as_it_was(model: Any) -> None:
    before = logits(model)
    with pytest.raises(ZeroDivisionError), together([temperature(0.5), limit_distance(8)])(model):
        raise ZeroDivisionError
    assert torch.equal(logits(model), before)


def test_one_that_cannot_be_entered_takes_the_others_back(model: Any) -> None:
    before = logits(model)
    with (
        pytest.raises(UsageError, match=r"no head \(9, 9\)"),
        together([temperature(0.5), ablate_heads([(9, 9)])])(model),
    ):
        pytest.fail("it was entered")
    assert torch.equal(logits(model), before)


def test_it_comes_back_from_json_and_from_what_a_casebook_plays() -> None:
    made = together([temperature(0.5, layers=[1]), ablate_heads([(1, 2)], form="uniform")])
    value = json.loads(json.dumps(made.to_json()))
    assert Intervention.from_json(value) == made
    assert value["together"]["interventions"][1]["ablate_heads"]["form"] == "uniform"
    assert probe.together(value["together"]["interventions"]) == made


def test_those_within_are_not_nested_deeper() -> None:
    parts = [temperature(0.5), cap_logits(9.0), ablate_heads([(0, 0)])]
    assert together([together(parts[:2]), parts[2]]) == together(parts)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ([], "two or more"),
        ([temperature(0.5)], "two or more"),
        ({"temperature": {}}, "two or more"),
        ([temperature(0.5), 3], "3 is none"),
        ([temperature(0.5), {"temprature": {}}], "no intervention 'temprature'"),
        ([temperature(0.5), {"temperature": {"tua": 1.0}}], "no field tua"),
    ],
)
def test_what_is_no_list_of_interventions_is_refused(given: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        together(given)


CONTRADICTIONS = [
    (limit_distance(8), interpolate_positions(4), "positions"),
    (interpolate_positions(4, layers=[0, 1]), interpolate_positions(2, layers=[1]), "positions"),
    (cap_logits(5.0, heads=[(0, 1), (1, 1)]), cap_logits(3.0, heads=[(1, 1)]), "softcap"),
    (cap_logits(5.0, layers=[1]), cap_logits(3.0, heads=[(1, 3)]), "softcap"),
    (keep_sinks_and_recent(8, 2, positions="text"), keep_sinks_and_recent(12, 2, positions="text"), "cache"),
    (keep_sinks_and_recent(8, 2), interpolate_positions(4), "positions"),
]


@pytest.mark.parametrize(("one", "other", "what"), CONTRADICTIONS)
def test_two_that_contradict_are_refused_by_both_names(model: Any, one: Any, other: Any, what: str) -> None:
    for first, second in ((one, other), (other, one)):
        with pytest.raises(UsageError) as error:
            together([first, second])
        for name in (type(one).__name__, type(other).__name__, what, "contradict"):
            assert name in str(error.value)
        # As nested blocks too, where nobody put them together; what was entered is left.
        before = logits(model)
        with pytest.raises(UsageError, match="contradict"):
            logits(model, first, second)
        assert torch.equal(logits(model), before)
        assert torch.equal(logits(model, first), logits(model, first))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (cap_logits(5.0, layers=[0]), cap_logits(3.0, layers=[1])),
        (cap_logits(5.0, heads=[(0, 1)]), cap_logits(3.0, heads=[(0, 2)])),
        (cap_logits(5.0, phase="prefill"), cap_logits(3.0, phase="decode")),
        (cap_logits(5.0, queries=(0, 8)), cap_logits(3.0, queries=(8, 16))),
        (limit_distance(8, limit=None), interpolate_positions(4)),
        (cap_logits(5.0), interpolate_positions(4)),
    ],
)
def test_two_that_act_in_different_places_do_not_contradict(one: Any, other: Any) -> None:
    assert len(together([one, other]).interventions) == 2
    assert len(together([other, one]).interventions) == 2


def test_what_contradicts_is_said_with_the_fields_that_differ_from_their_defaults() -> None:
    with pytest.raises(UsageError) as error:
        together([limit_distance(8), interpolate_positions(4)])
    assert "limit_distance (window 8) and interpolate_positions (factor 4) contradict" in str(error.value)


def test_each_is_asked_whether_it_applies() -> None:
    asked = []

    class silent(temperature):
        def check(self, model: Any, sample: Sample) -> None:
            asked.append((self.tau, sample.name))

    together([silent(0.5), silent(0.25)]).check(None, Sample("s", (1, 2)))
    assert asked == [(0.5, "s"), (0.25, "s")]


@pytest.mark.parametrize("name", discovery.names("hooks"))
def test_every_intervention_can_say_what_it_sets(name: str) -> None:
    assert isinstance(discovery.get("hooks", name).sets, property)
