"""The contract of interventions on attention: one file each in `definitions/` says densely what each is."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any

import pytest
import torch

import probe
from probe import discovery
from probe.errors import UsageError
from probe.hooks.attention.change_of_calls import ChangeOfCalls
from probe.hooks.intervention import Intervention
from tests.interventions import definitions
from tests.interventions.dense_model import MODELS, dense_logits, plain, tokens

KINDS = {
    name: importlib.import_module(f"{definitions.__name__}.{name}")
    for name in sorted(module.name for module in pkgutil.iter_modules(definitions.__path__))
}
EXAMPLES = [(name, i) for name, module in KINDS.items() for i in range(len(module.EXAMPLES))]
IDENTITIES = [(name, i) for name, module in KINDS.items() for i in range(len(module.IDENTITIES))]
CASES = [("llama", 1), ("llama", 15), ("llama", 129), ("qwen3", 129), ("gpt2", 33)]
"""Architectures and lengths."""


@functools.cache
def model_of(architecture: str) -> Any:
    """One model for all tests, since each leaves it bit-identical, which `test_the_models_are_as_they_were` checks."""
    return MODELS[architecture]()


@functools.cache
def applies(name: str, which: int, architecture: str, kind: str = "EXAMPLES") -> bool:
    """Whether the model has what the intervention changes; what it says where not is tested where it is defined."""
    try:
        with getattr(KINDS[name], kind)[which](model_of(architecture)):
            return True
    except UsageError:
        return False


def model_for(name: str, which: int) -> Any:
    """The first model to which an example applies."""
    return next(model_of(architecture) for architecture in MODELS if applies(name, which, architecture))


def logits(model: Any, ids: list[int], *, cut: int | None = None) -> torch.Tensor:
    with torch.no_grad():
        if cut is None:
            return model(torch.tensor([ids])).logits[0]
        first = model(torch.tensor([ids[:cut]]), use_cache=True)
        rest = model(torch.tensor([ids[cut:]]), past_key_values=first.past_key_values)
        return torch.cat([first.logits[0], rest.logits[0]])


def test_every_change_of_calls_is_defined() -> None:
    kinds = {name for name in discovery.names("hooks") if issubclass(discovery.get("hooks", name), ChangeOfCalls)}
    assert kinds <= set(KINDS)


def test_every_example_applies_to_a_model() -> None:
    for name, i in EXAMPLES:
        assert any(applies(name, i, architecture) for architecture in MODELS), (name, i)


@pytest.mark.parametrize(("architecture", "length"), CASES)
@pytest.mark.parametrize(("name", "which"), EXAMPLES)
def test_agrees_with_its_dense_definition(name: str, which: int, architecture: str, length: int) -> None:
    if not applies(name, which, architecture):
        return
    module, model = KINDS[name], model_of(architecture)
    intervention = module.EXAMPLES[which]
    ids = tokens(length)
    expected = dense_logits(model, ids, module.definition(intervention, model))
    before = logits(model, ids)
    with intervention(model):
        changed = logits(model, ids)
    # Float32's rounding over a model follows its largest logit, not each one's own size.
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(changed.double() / largest, expected / largest, rtol=0, atol=1e-5)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize(("name", "which"), EXAMPLES)
def test_changes_something(name: str, which: int) -> None:
    model = model_for(name, which)
    ids = tokens(129)
    definition = KINDS[name].definition(KINDS[name].EXAMPLES[which], model)
    assert (dense_logits(model, ids, definition) - dense_logits(model, ids, plain)).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "which"), IDENTITIES)
def test_identities(name: str, which: int) -> None:
    intervention = KINDS[name].IDENTITIES[which]
    for architecture in MODELS:
        model = model_of(architecture)
        if not applies(name, which, architecture, "IDENTITIES"):
            continue
        before = logits(model, ids := tokens(65))
        with intervention(model):
            torch.testing.assert_close(logits(model, ids), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "which"), EXAMPLES)
def test_a_trace_shows_what_it_did(name: str, which: int) -> None:
    """Entropy of the last row, from the definition's own output for one-hot values."""
    module = KINDS[name]
    model = model_for(name, which)
    ids, found = tokens(70), {}

    def seeing(layer: int, query: Any, key: Any, value: Any, scale: float) -> Any:
        made = module.definition(module.EXAMPLES[which], model)
        one_hot = torch.eye(key.shape[1], dtype=torch.float64).expand(len(key), -1, -1)
        # What changes heads' outputs alone leaves their attention as it finds it, and says so.
        looks = getattr(module, "looks", module.definition)(module.EXAMPLES[which], model)
        probability = looks(layer, query, key, one_hot, scale)
        found[layer] = torch.special.entr(probability).sum(-1)
        return made(layer, query, key, value, scale)

    dense_logits(model, ids, seeing)
    with module.EXAMPLES[which](model):
        trace = probe.trace(model, ids, statistics=["entropy"], max_new_tokens=1, check=False)
    for layer, entropy in found.items():
        torch.testing.assert_close(
            torch.from_numpy(trace["entropy"].sel(layer=layer).values).double(), entropy, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(("name", "which"), EXAMPLES)
def test_the_model_is_bit_identical_after_an_error(name: str, which: int) -> None:
    model = model_for(name, which)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = logits(model, ids := tokens(40))

    def body() -> None:
        with KINDS[name].EXAMPLES[which](model):
            logits(model, ids)
            raise RuntimeError("in the body")

    with pytest.raises(RuntimeError, match="in the body"):
        body()
    assert torch.equal(logits(model, ids), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "which"), EXAMPLES)
def test_chunks_give_what_the_whole_gives(name: str, which: int) -> None:
    module = KINDS[name]
    if not getattr(module, "CHUNKS", True):
        return
    model = model_for(name, which)
    ids = tokens(90)
    with module.EXAMPLES[which](model):
        pieces = probe.load(model)
        whole = pieces.step(pieces.prefill(ids[:-1]), ids[-1:])
        cut = pieces.step(pieces.prefill(ids[:-1], chunk_tokens=23), ids[-1:])
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "which"), EXAMPLES)
def test_it_comes_back_from_json(name: str, which: int) -> None:
    intervention = KINDS[name].EXAMPLES[which]
    assert Intervention.from_json(intervention.to_json()) == intervention


def test_the_models_are_as_they_were() -> None:
    for architecture, make in MODELS.items():
        fresh = make().state_dict()
        assert all(torch.equal(value, fresh[key]) for key, value in model_of(architecture).state_dict().items())
