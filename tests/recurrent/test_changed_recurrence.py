"""A recurrence that is put through again, and one with a window, against their definitions step by step in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from probe.kernels.recurrence import Recurrence
from probe.kernels.recurrence_scan import RecurrenceScan
from probe.kernels.windowed_recurrence import WindowedRecurrence

HEADS, STATES, CHANNELS = 4, 5, 3
KINDS = ["by head", "by component and channel"]


def random_recurrence(kind: str, length: int, *, factor: bool, slow: float = 1.0, seed: int = 0) -> Recurrence:
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=random)

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=random)

    by_head = kind == "by head"
    step = uniform(length, HEADS, 1 if by_head else CHANNELS)
    return Recurrence(
        layer=0,
        query=normal(length, 2, STATES),
        key=normal(length, 2, STATES),
        value=normal(length, HEADS, CHANNELS),
        gate=step,
        log_decay=slow * step[:, :, None],
        rate=-uniform(HEADS, 1 if by_head else STATES, 1 if by_head else CHANNELS),
        log_factor=-slow * uniform(length, HEADS, 1, 1) if factor else None,
        state_before=normal(HEADS, STATES, CHANNELS),
        phase="decode",
    )


def parts(r: Recurrence) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decay and what is written [token head state channel], and the queries, in float64."""
    log = r.log_decay.double() * r.rate.double()
    log = log if r.log_factor is None else log + r.log_factor.double()
    key, query = (each.double().repeat_interleave(2, 1) for each in (r.key, r.query))
    written = key[..., None] * (r.gate.double() * r.value.double())[:, :, None]
    return log.exp().expand_as(written), written, query


def steps(r: Recurrence) -> tuple[torch.Tensor, torch.Tensor]:
    decay, written, query = parts(r)
    state, states = r.state_before.double(), []
    for a, w in zip(decay, written, strict=True):
        state = a * state + w
        states.append(state)
    states = torch.stack(states)
    return states, torch.einsum("thn,thnp->thp", query, states)


def windowed_steps(r: Recurrence, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each state from nothing but the last inputs, anew for each token."""
    decay, written, query = parts(r)
    states = []
    for t in range(len(written)):
        state = torch.zeros_like(written[0])
        for j in range(max(0, t - window + 1), t + 1):
            state = decay[j] * state + written[j]
        states.append(state)
    states = torch.stack(states)
    return states, torch.einsum("thn,thnp->thp", query, states)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    size = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 * size)


@pytest.mark.parametrize("factor", [False, True])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_steps(kind: str, length: int, factor: bool) -> None:
    r = random_recurrence(kind, length, factor=factor)
    states, read = steps(r)
    found, last = r.outputs()
    close(found, read)
    close(last, states[-1])
    close(r.state_after(), states[-1])
    close(r.decay(), parts(r)[0].mean((-2, -1)).T)


def test_a_gate_on_what_is_read_is_in_the_outputs() -> None:
    r = dataclasses.replace(random_recurrence("by head", 70, factor=True), read_gate=torch.full((70, HEADS, 1), 0.5))
    close(r.outputs()[0], 0.5 * steps(r)[1])


@pytest.mark.parametrize("slow", [1.0, 1e-4])
@pytest.mark.parametrize("window", [1, 2, 40, 64, 65, 100, 150, 1000])
@pytest.mark.parametrize("length", [1, 64, 180])
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_recomputation_from_the_last_inputs(kind: str, length: int, window: int, slow: float) -> None:
    r = random_recurrence(kind, length, factor=True, slow=slow)
    plain = dataclasses.asdict(r) | {"state_before": torch.zeros_like(r.state_before)}
    windowed = WindowedRecurrence(**plain, window=window)
    states, read = windowed_steps(r, window)
    found, last = windowed.outputs()
    close(found, read)
    close(last, states[-1])
    counts = sorted({0, 1, length // 2, length})
    for count, state in zip(counts, windowed.states(counts), strict=True):
        close(state, states[count - 1] if count else torch.zeros_like(states[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_goes_on_over_chunks_and_over_some_heads_alone(kind: str) -> None:
    r = random_recurrence(kind, 150, factor=True)
    r = dataclasses.replace(r, state_before=torch.zeros_like(r.state_before))
    heads = torch.tensor([True, False, False, True])
    whole = WindowedRecurrence(**dataclasses.asdict(r), window=37, heads=heads)
    (plain, _), (windowed, _) = steps(r), windowed_steps(r, 37)
    states = torch.where(heads[:, None, None], windowed, plain)
    read = torch.einsum("thn,thnp->thp", parts(r)[2], states)
    found = []
    for first in range(0, 150, 29):
        part = whole.between(first, min(first + 29, 150))
        output, last = part.outputs()
        found.append(output)
        close(last, states[part.stop - 1])
    close(torch.cat(found), read)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_attention_ends_with_the_window(kind: str) -> None:
    """Rows are derivatives of the definition, taken by automatic differentiation."""
    r = random_recurrence(kind, 50, factor=True)
    r = dataclasses.replace(r, state_before=torch.zeros_like(r.state_before))
    value = r.value.double().requires_grad_()
    wide = dataclasses.replace(r, value=value)
    heads = torch.tensor([True, True, False, True])
    states = torch.where(heads[:, None, None], windowed_steps(wide, 17)[0], steps(wide)[0])
    read = torch.einsum("thn,thnp->thp", parts(wide)[2], states)
    rows = torch.stack([torch.autograd.grad(y.sum(), value, retain_graph=True)[0] for y in read])
    scan = RecurrenceScan(["effective_attention"])
    whole = WindowedRecurrence(**dataclasses.asdict(r), window=17, heads=heads)
    for first in range(0, 50, 13):
        scan.update(whole.between(first, min(first + 13, 50)))
    close(scan.finish()["effective_attention"].values, rows.mean(-1).permute(2, 0, 1))


def test_little_decay_leaves_a_window_its_digits() -> None:
    """The difference of two sums of 20,000 tokens would keep few of the digits of one of ten."""
    r = random_recurrence("by head", 20_000, factor=False, slow=1e-9)
    ones = torch.ones_like(r.value)
    r = dataclasses.replace(r, value=ones, key=torch.ones_like(r.key), state_before=torch.zeros_like(r.state_before))
    (state,) = WindowedRecurrence(**dataclasses.asdict(r), window=10).states([20_000])
    expected = windowed_steps(dataclasses.replace(r.cut(19_990, 20_000, r.state_before)), 10)[0][-1]
    torch.testing.assert_close(state.double(), expected, rtol=1e-6, atol=0)


def test_a_delta_rule_is_not_put_through_again() -> None:
    r = dataclasses.replace(random_recurrence("by head", 5, factor=False), delta=True)
    with pytest.raises(ValueError, match="delta rule"):
        r.outputs()
    with pytest.raises(ValueError, match="has no window"):
        WindowedRecurrence(**dataclasses.asdict(r), window=2).outputs()
