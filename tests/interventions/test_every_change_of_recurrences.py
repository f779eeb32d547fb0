"""The contract of interventions on recurrences: each against its definition, token by token in float64."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import probe
from probe import discovery
from probe.errors import NotReproducible, UsageError
from probe.hooks.decimate_tokens import decimate_tokens
from probe.hooks.forget_faster import forget_faster
from probe.hooks.forget_more_remember_less import forget_more_remember_less
from probe.hooks.intervention import Intervention
from probe.hooks.normalise_state import normalise_state
from probe.hooks.recurrence.change_of_recurrences import ChangeOfRecurrences
from probe.hooks.rescale_decay import rescale_decay
from probe.hooks.slide_state import slide_state
from probe.hooks.together import together
from probe.sample import Sample
from tests.interventions.stepwise_model import Definition, plain, stepwise_logits, windowed
from tests.recurrent.conftest import make as made_new
from tests.recurrent.conftest import tokens

MODELS = ("mamba", "mamba2", "jamba", "falcon_h1")
SIZES = [*((kind, length) for kind in ("mamba", "mamba2") for length in (1, 33, 129)), ("jamba", 33), ("falcon_h1", 33)]


@functools.cache
def make(kind: str) -> Any:
    """One model for all tests of its kind: that it is as before is tested. Jamba without experts, which know no
    float64."""
    return made_new(kind, initializer_range=0.15, **({"num_experts": 1} if kind == "jamba" else {}))


def by_layer(only: int | None, what: Definition) -> Definition:
    return lambda layer, *given: what(layer, *given) if only in (None, layer) else plain(layer, *given)


def forget_more(keep: float, write: float) -> Definition:
    return lambda layer, decay, written, step: plain(layer, keep * decay, write * written, step)


def normalise(limit: float) -> Definition:
    def normalised(layer: int, decay: Tensor, written: Tensor, step: Tensor) -> Tensor:
        state, states = torch.zeros_like(written[0]), []
        for a, w in zip(decay, written, strict=True):
            state = a * state + w
            norm = state.square().sum((-2, -1), keepdim=True).sqrt()
            state = torch.where(norm > limit, state * limit / norm, state)
            states.append(state)
        return torch.stack(states)

    return normalised


def slide(window: int) -> Definition:
    return lambda layer, decay, written, step: windowed(decay, written, window)


def rescale(factor: float, of: str, beyond: int = 0) -> Definition:
    def rescaled(layer: int, decay: Tensor, written: Tensor, step: Tensor) -> Tensor:
        c = torch.full((len(decay), 1, 1, 1), factor, dtype=torch.float64)
        c[:beyond] = 1
        return plain(layer, decay**c, written * c if of == "step" else written, step)

    return rescaled


def decimate(keep: int) -> Definition:
    def decimated(layer: int, decay: Tensor, written: Tensor, step: Tensor) -> Tensor:
        # In a forward over everything the last token decodes.
        importance = step[:-1].mean((-2, -1))
        if len(importance):
            importance = (importance / importance.max() * 1e5).round()
        order = sorted(range(len(importance)), key=lambda t: (-float(importance[t]), t))
        chosen = {*order[:keep], len(step) - 1}
        state, states = torch.zeros_like(written[0]), []
        for t in range(len(step)):
            state = decay[t] * state + written[t] if t in chosen else state
            states.append(state)
        return torch.stack(states)

    return decimated


EXAMPLES: dict[str, tuple[ChangeOfRecurrences, Definition]] = {
    "forget more": (forget_more_remember_less(0.9, 0.7), forget_more(0.9, 0.7)),
    "forget more, layer 0": (forget_more_remember_less(0.8, 1.0, layers=[0]), by_layer(0, forget_more(0.8, 1.0))),
    "normalise": (normalise_state(0.5), normalise(0.5)),
    "normalise a little": (normalise_state(1.2), normalise(1.2)),
    "slide 1": (slide_state(1), slide(1)),
    "slide 10": (slide_state(10), slide(10)),
    "slide 70": (slide_state(70), slide(70)),
    "rescale the step": (rescale_decay(0.25), rescale(0.25, "step")),
    "rescale the decay": (rescale_decay(3.0, of="decay"), rescale(3.0, "decay")),
    "rescale beyond": (rescale_decay(0.3, beyond=20), rescale(0.3, "step", 20)),
    "decimate": (decimate_tokens(8), decimate(8)),
}
IDENTITIES = (
    forget_more_remember_less(1.0, 1.0),
    normalise_state(1e9),
    slide_state(65),
    rescale_decay(1.0),
    rescale_decay(0.5, beyond=65),
    decimate_tokens(64),
)
CHUNKS = [
    *((name, kind) for name in EXAMPLES for kind in ("mamba", "mamba2") if name != "decimate"),
    *((name, kind) for name in ("normalise", "slide 10") for kind in ("jamba", "falcon_h1")),
]


def logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


def test_every_change_of_recurrences_is_an_example() -> None:
    kinds = {n for n in discovery.names("hooks") if issubclass(discovery.get("hooks", n), ChangeOfRecurrences)}
    assert kinds == {type(each).__name__ for each, _ in EXAMPLES.values()}
    assert kinds == {type(each).__name__ for each in IDENTITIES}


@pytest.mark.parametrize(("kind", "length"), SIZES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_agrees_with_its_definition(name: str, kind: str, length: int) -> None:
    intervention, definition = EXAMPLES[name]
    model, ids = make(kind), tokens(length)
    before = logits(model, ids)
    with intervention(model):
        changed = logits(model, ids)
    close(changed, stepwise_logits(model, ids, definition))
    assert torch.equal(logits(model, ids), before)


def test_the_definitions_are_apart() -> None:
    """Each changes the model, and none is another one."""
    model, ids = make("mamba"), tokens(129)
    found = [stepwise_logits(model, ids, definition) for definition in (plain, *(d for _, d in EXAMPLES.values()))]
    for i, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-3 for other in found[:i])


@pytest.mark.parametrize("kind", MODELS)
def test_identities_change_no_bit(kind: str) -> None:
    model, ids = make(kind), tokens(65)
    before = logits(model, ids)
    for intervention in IDENTITIES:
        with intervention(model):
            assert torch.equal(logits(model, ids), before), intervention


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_trace_shows_the_changed_states(name: str, kind: str) -> None:
    intervention, definition = EXAMPLES[name]
    model, ids, states = make(kind), tokens(90), dict[int, Tensor]()
    stepwise_logits(model, ids, definition, states)
    with intervention(model):
        trace = probe.trace(model, ids, statistics=[{"state_norm": {"every": 9}}], max_new_tokens=1, check=False)
    for layer, each in states.items():
        found = torch.from_numpy(trace["state_norm_every_9"].sel(layer=layer).values)
        close(found, each[8::9].square().sum((-2, -1)).sqrt().T, 1e-4)


def test_a_trace_shows_changed_decays_gates_and_reach() -> None:
    model, ids = make("mamba2"), tokens(80)
    asked = ["decay", "input_gate", "effective_distance"]
    before = probe.trace(model, ids, statistics=asked, check=False)
    with forget_more_remember_less(0.5, 0.25)(model):
        changed = probe.trace(model, ids, statistics=asked, check=False)
    close(torch.from_numpy(changed["decay"].values[0]), 0.5 * torch.from_numpy(before["decay"].values[0]))
    close(torch.from_numpy(changed["input_gate"].values[0]), 0.25 * torch.from_numpy(before["input_gate"].values[0]))
    with slide_state(2)(model):
        reach = probe.trace(model, ids, statistics=asked, check=False)["effective_distance"].values
    assert (reach < 2).all()
    assert before["effective_distance"].values.max() > 2


@pytest.mark.parametrize(("name", "kind"), CHUNKS)
def test_chunks_and_decoded_tokens_give_what_the_whole_gives(name: str, kind: str) -> None:
    intervention, _ = EXAMPLES[name]
    model, ids = make(kind), tokens(60)
    pieces = probe.load(model)
    with intervention(model):
        whole = logits(model, ids)
        state = pieces.prefill(ids[:40], chunk_tokens=13)
        last = [pieces.step(state, ids[at : at + 1]) for at in range(40, 57)]
        several = pieces.step(state, ids[57:])
    close(torch.cat([*last, several]), whole[40:])


def test_decimation_needs_the_prompt_in_one_chunk() -> None:
    model = make("mamba2")
    pieces = probe.load(model)
    with decimate_tokens(8)(model):
        state = pieces.prefill(tokens(40)[:-1])
        last = pieces.step(state, tokens(40)[-1:])
        close(last[0], stepwise_logits(model, tokens(40), decimate(8))[-1])
        with pytest.raises(UsageError, match=r"whole prompt.*begins at token 20"):
            pieces.prefill(tokens(40), chunk_tokens=20)


@pytest.mark.parametrize("name", ["forget more", "normalise", "slide 10"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_it_acts_in_its_phase_alone(name: str, phase: Any) -> None:
    intervention, _ = EXAMPLES[name]
    fields = next(iter(intervention.to_json().values())) | {"phase": phase}
    only = type(intervention)(**fields)
    model, ids, cut = make("mamba2"), tokens(50), 30

    def definition(layer: int, decay: Tensor, written: Tensor, step: Tensor) -> Tensor:
        state, states = torch.zeros_like(written[0]), []
        for t, (a, w) in enumerate(zip(decay, written, strict=True)):
            acts = (t < cut) == (phase == "prefill")
            if name == "forget more" and acts:
                a, w = 0.9 * a, 0.7 * w
            state = a * state + w
            if name == "normalise" and acts:
                norm = state.square().sum((-2, -1), keepdim=True).sqrt()
                state = torch.where(norm > 0.5, state * 0.5 / norm, state)
            if name == "slide 10" and acts:
                first = max(0, t - 9)
                state = plain(0, decay[first : t + 1], written[first : t + 1], step)[-1]
            states.append(state)
        return torch.stack(states)

    pieces = probe.load(model)
    with only(model):
        found = pieces.step(pieces.prefill(ids[:cut], chunk_tokens=11), ids[cut:])
    close(found, stepwise_logits(model, ids, definition)[cut:])


@pytest.mark.parametrize("name", ["forget more", "normalise", "slide 10", "rescale the step", "decimate"])
def test_it_acts_on_its_heads_alone(name: str) -> None:
    intervention, definition = EXAMPLES[name]
    fields = next(iter(intervention.to_json().values())) | {"heads": [[0, 1], [0, 6], [1, 0]]}
    heads = {0: [1, 6], 1: [0]}
    model, ids = make("mamba2"), tokens(70)

    def of_heads(layer: int, decay: Tensor, written: Tensor, step: Tensor) -> Tensor:
        states = plain(layer, decay, written, step).clone()
        states[:, heads[layer]] = definition(layer, decay, written, step)[:, heads[layer]]
        return states

    expected = stepwise_logits(model, ids, of_heads)
    with type(intervention)(**fields)(model):
        close(logits(model, ids), expected)


def test_each_head_may_have_its_own_norm() -> None:
    model, ids = make("mamba2"), tokens(40)

    def definition(layer: int, decay: Tensor, written: Tensor, step: Tensor) -> Tensor:
        states = plain(layer, decay, written, step).clone()
        for head, limit in ((3, 0.4), (5, 1.5)) if layer == 1 else ():
            one = slice(head, head + 1)
            states[:, one] = normalise(limit)(layer, decay[:, one], written[:, one], step)
        return states

    with normalise_state([0.4, 1.5], heads=[(1, 3), (1, 5)])(model):
        close(logits(model, ids), stepwise_logits(model, ids, definition))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_model_is_bit_identical_after_an_error(name: str) -> None:
    model, ids = make("jamba"), tokens(40)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    before = logits(model, ids)

    def body() -> None:
        with EXAMPLES[name][0](model):
            logits(model, ids)
            raise RuntimeError("in the body")

    with pytest.raises(RuntimeError, match="in the body"):
        body()
    assert torch.equal(logits(model, ids), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_comes_back_from_json(name: str) -> None:
    intervention = EXAMPLES[name][0]
    assert Intervention.from_json(intervention.to_json()) == intervention


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@pytest.mark.parametrize("name", ["forget more", "normalise", "slide 10", "decimate"])
def test_a_padded_batch_gives_what_each_sample_gives(name: str, kind: str) -> None:
    intervention, _ = EXAMPLES[name]
    model, short, long = make(kind), tokens(30, 1), tokens(41, 2)
    ids = torch.tensor([[0] * 11 + short, long])
    mask = torch.ones_like(ids)
    mask[0, :11] = 0
    with intervention(model), torch.no_grad():
        found = model(ids, attention_mask=mask, use_cache=False).logits
        close(found[0, 11:], logits(model, short))
        close(found[1], logits(model, long))


def test_generation_goes_on_from_the_changed_state() -> None:
    model, ids = make("mamba2"), tokens(25)
    for name in ("slide 10", "normalise"):
        with EXAMPLES[name][0](model):
            made = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()
            for at in range(25, len(made)):
                assert int(logits(model, made[:at])[-1].argmax()) == made[at]


def test_those_entered_first_act_first() -> None:
    model, ids = make("mamba2"), tokens(40)

    def definition(layer: int, decay: Tensor, written: Tensor, step: Tensor) -> Tensor:
        return normalise(0.5)(layer, 0.9 * decay, 0.7 * written, step)

    with forget_more_remember_less(0.9, 0.7)(model), normalise_state(0.5)(model):
        close(logits(model, ids), stepwise_logits(model, ids, definition))
    with forget_more_remember_less(0.9, 0.7)(model), slide_state(10)(model):
        expected = stepwise_logits(model, ids, lambda _, a, w, step: windowed(0.9 * a, 0.7 * w, 10))
        close(logits(model, ids), expected)


def test_nothing_follows_a_window() -> None:
    model = make("mamba2")
    with (
        slide_state(10)(model),
        pytest.raises(UsageError, match=r"normalise_state within slide_state.*enter slide_state last"),
        normalise_state(1.0)(model),
    ):
        pass


LAYER, HEADS = [0], [(0, head) for head in range(8)]
CONTRADICTIONS: list[tuple[Intervention, Intervention, str]] = [
    (slide_state(10), slide_state(20, layers=LAYER), "window of states"),
    (normalise_state(1.0), normalise_state(2.0, heads=[(1, 3)]), "norm of states"),
    (decimate_tokens(8, layers=LAYER), decimate_tokens(4), "tokens that states go over"),
    (rescale_decay(2.0), rescale_decay(3.0, of="decay"), "decay of states"),
    (forget_faster(HEADS, [2.0] * 8), forget_faster([(0, 3)], [3.0]), "decay of states"),
    (forget_faster(HEADS, [2.0] * 8), rescale_decay(2.0), "decay of states"),
    (forget_faster([(1, 0)], [2.0]), forget_more_remember_less(0.9, 1.0), "decay of states"),
    (rescale_decay(2.0, beyond=20), forget_more_remember_less(0.9, 0.7), "decay of states, what states take up"),
    (rescale_decay(2.0), forget_more_remember_less(1.0, 0.7), "what states take up"),
]


@pytest.mark.parametrize(("one", "other", "what"), CONTRADICTIONS)
def test_two_that_set_the_same_are_refused_by_both_names(one: Intervention, other: Intervention, what: str) -> None:
    model, ids = make("mamba2"), tokens(20)
    before = logits(model, ids)
    for first, second in ((one, other), (other, one)):
        for enter in (
            lambda a, b: together([a, b]),
            lambda a, b: [stack.enter_context(each(model)) for each in (a, b)],
        ):
            with pytest.raises(UsageError) as error, contextlib.ExitStack() as stack:
                enter(first, second)
            for said in (type(one).__name__, type(other).__name__, f"contradict each other: both set {what}"):
                assert said in str(error.value)
        assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (normalise_state(1.0, layers=[0]), normalise_state(2.0, layers=[1])),
        (forget_faster([(0, 1)], [2.0]), forget_faster([(0, 2)], [2.0])),
        (forget_faster([(0, 1)], [2.0]), rescale_decay(2.0, layers=[1])),
        (rescale_decay(2.0, phase="prefill"), rescale_decay(2.0, phase="decode")),
        (rescale_decay(2.0, of="decay"), forget_more_remember_less(1.0, 0.5)),
        (forget_more_remember_less(0.9, 1.0), forget_more_remember_less(1.0, 0.9)),
        (rescale_decay(1.0), rescale_decay(2.0)),
        (forget_more_remember_less(0.9, 0.7), normalise_state(0.5)),
        (decimate_tokens(8), slide_state(10)),
    ],
)
def test_two_that_set_different_things_or_elsewhere_go_together(one: Intervention, other: Intervention) -> None:
    model, ids = make("mamba2"), tokens(20)
    alone = []
    for each in (one, other):
        with each(model):
            alone.append(logits(model, ids))
    with together([one, other])(model):
        both = logits(model, ids)
    assert torch.isfinite(both).all()
    # Both act: together they are neither of them alone, but for one that changes nothing and says so.
    assert [torch.equal(both, each) for each in alone] == [False, one == rescale_decay(1.0)]


def test_rescaling_the_decay_is_to_forget_faster() -> None:
    model, ids = make("mamba2"), tokens(50)
    heads = [(layer, head) for layer in (0, 1) for head in range(8)]
    with forget_faster(heads, [3.0] * 16)(model):
        expected = logits(model, ids)
    with rescale_decay(3.0, of="decay")(model):
        close(logits(model, ids), expected)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_window_survives_answers_that_are_taken_back(kind: str) -> None:
    model, ids = make(kind), tokens(50)
    pieces = probe.load(model)
    with slide_state(10)(model):
        state = pieces.prefill(ids[:40], chunk_tokens=17)
        here = pieces.mark(state)
        for answer in (tokens(13, 5), tokens(3, 6)):
            for token in answer:
                pieces.step(state, [token])
            pieces.rollback(state, here)
            pieces.step(state, answer)
            pieces.rollback(state, here)
        found = pieces.step(state, ids[40:])
        close(found, logits(model, ids)[40:])


def test_a_window_never_goes_on_with_another_text() -> None:
    model = make("mamba2")
    pieces = probe.load(model)
    before = pieces.prefill(tokens(30, 1))
    with slide_state(10)(model):
        with pytest.raises(NotReproducible, match="what it has not seen"):
            pieces.step(before, [5])
        first = pieces.prefill(tokens(30, 2))
        pieces.prefill(tokens(30, 3))
        with pytest.raises(NotReproducible, match="what it has not seen"):
            pieces.step(first, [5])


def test_half_precision_is_computed_in_float32() -> None:
    """What is added to the rounding of the model's own scan is nothing."""
    model, ids = made_new("mamba2", initializer_range=0.15).bfloat16(), tokens(60)
    own = (logits(model, ids).double() - stepwise_logits(model, ids, plain)).abs().mean()
    with slide_state(10)(model):
        found = logits(model, ids)
    assert (found.double() - stepwise_logits(model, ids, slide(10))).abs().mean() < 1.5 * own


@pytest.mark.parametrize(
    ("kind", "intervention", "message"),
    [
        ("llama", slide_state(4), "slide_state: no layer of .* recurs.*a recurrent model is needed"),
        ("rwkv", slide_state(4), "no layer of .* can be changed .rwkv4: a recurrence of this kind is read and not"),
        ("zamba", slide_state(4), "no layer of .* can be changed .mamba1: its heads are scanned one by one"),
        ("jamba", normalise_state(1.0, layers=[1]), "layer 1 of .* does not recur; recurrent layers by kind"),
        ("mamba2", normalise_state(1.0, heads=[(0, 8)]), "layer 0 of .* has 8 state heads, and no head 8"),
        ("mamba", normalise_state(1.0, heads=[(0, 1)]), "has 1 state heads, and no head 1"),
    ],
)
def test_where_it_does_not_apply_is_said_by_name(kind: str, intervention: Any, message: str) -> None:
    model = make(kind)
    with pytest.raises(UsageError, match=message), intervention(model):
        pass
    with pytest.raises(UsageError, match=message):
        intervention.check(model, Sample("a", (1, 2)))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: slide_state(0), "window is a whole number of tokens, at least 1, not 0"),
        (lambda: slide_state(2.5), "window is a whole number"),
        (lambda: normalise_state(0.0), "max_norm lies above 0"),
        (lambda: normalise_state("x"), "max_norm is a number"),
        (lambda: normalise_state([1.0, 2.0], heads=[(0, 0)]), "2 limits for 1 heads"),
        (lambda: normalise_state([1.0]), "1 limits for 0 heads"),
        (lambda: forget_more_remember_less(0.0, 1.0), "keep lies above 0"),
        (lambda: forget_more_remember_less(1.0, 1.5), "write lies above 0 and is at most 1"),
        (lambda: rescale_decay(-1.0), "factor lies above 0"),
        (lambda: rescale_decay(2.0, of="state"), "of is 'state'"),
        (lambda: rescale_decay(2.0, beyond=-1), "beyond is a number of tokens"),
        (lambda: decimate_tokens(0), "keep is a whole number"),
        (lambda: decimate_tokens(4, phase="decode"), "acts on the prompt alone"),
        (lambda: slide_state(4, phase="answer"), "phase is 'answer'"),
        (lambda: slide_state(4, layers=[0], heads=[(0, 0)]), "layers and heads both"),
        (lambda: slide_state(4, heads=[0]), "pairs of layer and head"),
    ],
)
def test_fields_that_cannot_be_are_refused(made: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made()
