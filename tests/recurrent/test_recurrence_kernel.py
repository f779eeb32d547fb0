"""A recurrence in blocks equals its definition, however its tokens come in chunks; so does what it attends to."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from probe.errors import UsageError
from probe.kernels.recurrence import Recurrence
from probe.kernels.recurrence_scan import RecurrenceScan
from probe.kernels.statistic import names, parse
from probe.kernels.stepwise import Stepwise

STATE = ["state_mean", "state_variance", "state_max", "state_norm"]
ALL = [*STATE, "decay", "input_gate", "effective_attention", "effective_distance"]
HEADS, GROUPS, STATES, CHANNELS = 4, 2, 5, 3


def make(kind: str, length: int, seed: int = 0) -> Recurrence:
    """A random recurrence of one of the forms, from a random state."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=random)

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=random)

    key = normal(length, GROUPS, STATES)
    plain = Recurrence(
        layer=0,
        query=normal(length, GROUPS, STATES),
        key=key / key.norm(dim=-1, keepdim=True) if "delta" in kind else key,
        value=normal(length, HEADS, CHANNELS),
        gate=uniform(length, HEADS, 1),
        log_decay=-uniform(length, HEADS, 1, 1),
        state_before=torch.zeros(HEADS, STATES, CHANNELS),
        delta="delta" in kind,
        phase="decode",
    )
    if kind == "decay by component and channel":
        step = uniform(length, HEADS, CHANNELS)
        rate = -3 * uniform(HEADS, STATES, CHANNELS)
        return dataclasses.replace(plain, gate=step, log_decay=step[:, :, None], rate=rate)
    if kind == "decay by component, delta":
        return dataclasses.replace(plain, log_decay=-5 * uniform(length, HEADS, STATES, 1))
    if kind == "decay by channel, read before the write":
        return dataclasses.replace(
            plain,
            gate=uniform(length, HEADS, CHANNELS),
            log_decay=-uniform(length, HEADS, 1, CHANNELS),
            read_gate=uniform(length, HEADS, CHANNELS),
            bonus=uniform(length, HEADS, CHANNELS),
        )
    if kind == "forgets all now and then":
        decays = plain.log_decay.masked_fill(torch.arange(length)[:, None, None, None] % 7 == 0, -torch.inf)
        return dataclasses.replace(plain, log_decay=decays)
    return plain


KINDS = [
    "decay by head",
    "decay by head, delta",
    "decay by component, delta",
    "decay by component and channel",
    "decay by channel, read before the write",
    "forgets all now and then",
]


def by_definition(recurrence: Recurrence) -> tuple[np.ndarray, np.ndarray]:
    """States [token, head, state, channel] and what is read of them, entry by entry in numpy."""
    r = {
        field.name: value.double().numpy()
        for field in dataclasses.fields(recurrence)
        if isinstance(value := getattr(recurrence, field.name), torch.Tensor)
    }
    group = HEADS // GROUPS
    states, read = [], []
    state = r["state_before"].copy()
    for t in range(recurrence.num_tokens):
        before = state
        state = np.zeros_like(state)
        y = np.zeros((HEADS, CHANNELS))
        for h, p in itertools.product(range(HEADS), range(CHANNELS)):
            k, q = r["key"][t, h // group], r["query"][t, h // group]
            rate = np.broadcast_to(r.get("rate", np.ones((1, 1, 1))), (HEADS, STATES, CHANNELS))[h, :, p]
            a = np.exp(np.broadcast_to(r["log_decay"][t], (HEADS, STATES, CHANNELS))[h, :, p] * rate)
            gate = np.broadcast_to(r["gate"][t], (HEADS, CHANNELS))[h, p]
            kept = a * before[h, :, p]
            new = r["value"][t, h, p] - (k @ kept if recurrence.delta else 0)
            state[h, :, p] = kept + gate * k * new
            if recurrence.bonus is None:
                y[h, p] = q @ state[h, :, p]
            else:
                y[h, p] = r["read_gate"][t, h, p] * (q @ before[h, :, p]) + r["bonus"][t, h, p] * r["value"][t, h, p]
        states.append(state)
        read.append(y)
    return np.stack(states), np.stack(read)


def close(actual: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-5) -> bool:
    wanted = torch.as_tensor(expected)
    return bool((actual.double() - wanted).abs().max() <= tolerance * wanted.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("length", [1, 15, 129])
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_outputs_are_those_of_the_definition(kind, length):
    recurrence = make(kind, length)
    recurrence = dataclasses.replace(recurrence, state_before=torch.randn(HEADS, STATES, CHANNELS))
    states, read = by_definition(recurrence)
    counts = sorted({0, 1, length // 2, length})
    for count, state in zip(counts, recurrence.states(counts), strict=True):
        assert close(state, states[count - 1] if count else recurrence.state_before.numpy())
    before, after = recurrence.states([length - 1, length])
    assert close(recurrence.read(length - 1, before, after), read[-1])
    assert close(Stepwise(recurrence).states, states, 1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 64, 129])
@pytest.mark.parametrize("kind", KINDS)
def test_no_statistic_depends_on_how_tokens_come(kind, chunk):
    recurrence = make(kind, 129)
    scan, whole = RecurrenceScan(ALL), RecurrenceScan([*STATE, "decay", "input_gate"])
    for first in range(0, 129, chunk):
        part = recurrence.between(first, min(first + chunk, 129))
        # Every row of the hidden attention would take the test long.
        scan.update(dataclasses.replace(part, phase="decode" if part.stop > 127 else "prefill"))
    whole.update(recurrence)
    found, expected = scan.finish(), whole.finish()
    states, _ = by_definition(recurrence)
    assert found["state_norm"].coordinates["position"].tolist() == [63, 127, 128]
    norms = np.sqrt((states[[63, 127, 128]] ** 2).sum((-2, -1))).T
    assert close(found["state_norm"].values, norms)
    for name, result in expected.items():
        assert close(found[name].values, result.values.numpy()), name
        assert found[name].dims == result.dims


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_hidden_attention_are_the_derivatives(kind):
    length = 40
    recurrence = make(kind, length)
    value = recurrence.value.double().requires_grad_()
    wide = dataclasses.replace(recurrence, value=value)
    outputs = [wide.read(t, *wide.states([t, t + 1])) for t in range(length)]
    gradients = [torch.autograd.grad(y.sum(), value, retain_graph=True)[0] for y in outputs]
    expected = torch.stack(gradients).permute(2, 0, 1, 3)
    assert close(Stepwise(recurrence).attention, expected.numpy(), 1e-9)

    scan = RecurrenceScan(["effective_attention", "effective_distance"])
    for first in range(0, length, 13):
        scan.update(recurrence.between(first, min(first + 13, length)))
    found = scan.finish()
    magnitude = expected.abs().mean(-1).numpy()
    assert close(found["effective_attention"].values, expected.mean(-1).numpy())
    assert close(found["effective_attention_magnitude"].values, magnitude)
    distance = (np.arange(length)[:, None] - np.arange(length)) * magnitude
    assert close(found["effective_distance"].values, distance.sum(-1) / magnitude.sum(-1))


@pytest.mark.parametrize("name", ALL)
def test_the_float64_definition_of_each_statistic_agrees(name):
    assert parse(name).kind == "recurrence"
    for kind in KINDS:
        recurrence = make(kind, 21)
        scan = RecurrenceScan([name])
        scan.update(recurrence)
        for suffix, expected in parse(name).reference(Stepwise(recurrence)).items():
            assert close(scan.finish()[parse(name).array_name(suffix)].values, expected.numpy()), kind


def test_all_statistics_of_recurrent_layers_are_tested():
    assert {name for name in names() if parse(name).kind == "recurrence"} == set(ALL)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_in_low_precision_is_computed_in_float32(kind, dtype):
    recurrence = make(kind, 33)
    lower = {
        field.name: value.to(dtype)
        for field in dataclasses.fields(recurrence)
        if isinstance(value := getattr(recurrence, field.name), torch.Tensor)
    }
    recurrence = dataclasses.replace(recurrence, **lower)
    assert close(recurrence.state_after(), by_definition(recurrence)[0][-1])


def test_long_arrays_are_pooled_and_handed_over_as_they_grow():
    recurrence = dataclasses.replace(make("decay by head", 100), phase="prefill")
    scan, plain = (RecurrenceScan(["decay", "state_norm"], pool_tokens=pool) for pool in (16, None))
    parts = []
    for first in range(0, 100, 30):
        scan.update(recurrence.between(first, min(first + 30, 100)))
        parts.append(scan.drain())
    parts.append(scan.finish())
    plain.update(recurrence)
    whole = plain.finish()
    decay = torch.cat([part["decay"].values for part in parts if "decay" in part], -1)
    blocks = np.array_split(whole["decay"].values.numpy(), range(16, 100, 16), -1)
    assert close(decay, np.stack([block.mean(-1) for block in blocks], -1))
    norm = torch.cat([part["state_norm"].values for part in parts if "state_norm" in part], -1)
    assert close(norm, whole["state_norm"].values.numpy())
    positions = [part["state_norm"].coordinates["position"].tolist() for part in parts if "state_norm" in part]
    assert [each for part in positions for each in part] == [63, 99]


def test_tokens_left_out_are_refused():
    recurrence = make("decay by head", 30)
    scan = RecurrenceScan(["decay"])
    scan.update(recurrence.between(0, 10))
    with pytest.raises(ValueError, match="do not follow"):
        scan.update(recurrence.between(11, 30))
    with pytest.raises(ValueError, match="do not follow"):
        RecurrenceScan(["effective_distance"]).update(recurrence.between(5, 30))
    with pytest.raises(ValueError, match="recurrent layer: entropy"):
        RecurrenceScan(["entropy"])


@pytest.mark.parametrize("name", STATE)
def test_an_interval_is_a_positive_number_and_one_for_all(name):
    with pytest.raises(UsageError, match="at least 1"):
        parse({name: {"every": 0}})
    other = "state_mean" if name != "state_mean" else "state_norm"
    with pytest.raises(UsageError, match="equally many"):
        RecurrenceScan([{name: {"every": 5}}, other])
