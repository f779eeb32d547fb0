"""What heads behind removed ones make up for, from planted writes and from a model of known weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe.analyses.self_repair import self_repair
from probe.errors import MissingStatistic, UsageError
from tests.analyses.conftest import StandIn, make_sample, make_trace

REMOVED = [[1, 0]]


def trace(index: int, writes: Any, heads: Any = None, **facts: Any) -> Any:
    """What each head writes at the prompt's last token and, another way, at a later row that must not be read."""
    rows = np.stack([np.asarray(writes, float), np.full(np.shape(writes), 99.0)], axis=-1)
    arrays = {"span_logit_all": (("layer", "head", "row"), rows)}
    removed = heads and {"ablate_heads": {"heads": heads, "form": "zero", "phase": "both"}}
    return make_trace(make_sample(index), arrays=arrays, intervention=removed, **facts)


def experiment(repair: float, scale: float, num: int = 12, draws: int = 8) -> list[Any]:
    """Head (1, 0) writes 2, (2, 1) writes `repair` more without it, and the norm's scale grows by `scale`."""
    made = []
    generator = np.random.default_rng(0)
    for i in range(num):
        before = np.array([[0.3, -0.1], [2.0, 0.1], [0.2, 0.5]])
        after = before.copy()
        after[2, 1] += repair
        made += [trace(i, before), trace(i, scale * after, REMOVED, role="treatment")]
        for draw in range(draws):
            other = before + np.array([[0], [0], [1]]) * 0.01 * generator.standard_normal((3, 2))
            made.append(trace(i, 1.1 * other, [[1, 1]], role="control", draw=draw))
    return made


def detail(finding: Any, name: str) -> float:
    return next(each.value for each in finding.details if each.name.startswith(name))


def test_repair_is_told_from_the_norms_scale() -> None:
    finding = self_repair(experiment(0.5, 1.25))
    assert finding.verdict == "supported"
    assert finding.measured.value == pytest.approx(0.5)
    assert detail(finding, "share of it that the heads behind") == pytest.approx(0.25)
    assert detail(finding, "factor by which the norms' scale grew with others") == pytest.approx(1.1)
    # Left are .3, -.1, .1, .2 and 1.0, a quarter more of each.
    assert detail(finding, "more that the heads left write") == pytest.approx(0.25 * 1.5)
    first = finding.records()[0]
    assert [first["layer"], first["head"], first["makes_up"]] == [2, 1, True]
    assert finding.suggests[0].fields["heads"] == [[1, 0], [2, 1]]


def test_a_larger_norm_alone_is_no_repair() -> None:
    finding = self_repair(experiment(0.0, 1.5))
    assert finding.verdict == "refuted"
    assert finding.measured.value == pytest.approx(0.0, abs=1e-9)
    assert finding.suggests == ()


def test_heads_that_wrote_nothing_are_not_made_up_for() -> None:
    traces = experiment(0.5, 1.0)
    for each in traces:
        each.dataset["span_logit_all"][{"layer": 1, "head": 0}] = 0.0
    assert self_repair(traces).verdict == "inconclusive"


def test_where_no_head_stands_behind_it_says_so() -> None:
    traces = experiment(0.5, 1.25)
    for each in traces:
        if each.facts["intervention"]:
            each.facts["intervention"]["ablate_heads"]["heads"] = [[2, 0]]
        # What stands before is untouched but for the scale.
        each.dataset["span_logit_all"][{"layer": 2}] = 0.5
    finding = self_repair(traces)
    assert finding.measured.value is None
    assert finding.claim.startswith("No head stands behind the removed ones, which begin with layer 2")


def test_fewer_than_three_draws_support_nothing() -> None:
    finding = self_repair(experiment(0.5, 1.0, draws=2))
    assert finding.verdict == "inconclusive"
    assert any("Fewer than 3 draws" in note for note in finding.notes)


def test_traces_in_which_the_heads_before_changed_are_left_out() -> None:
    traces = experiment(0.5, 1.0)
    treated = next(each for each in traces if each.facts["role"] == "treatment")
    treated.dataset["span_logit_all"][{"layer": 0, "head": 0}] = 5.0
    finding = self_repair(traces)
    assert finding.measured.n == 11
    assert any("1 × a prompt of which is not known what the heads before" in note for note in finding.notes)


def test_what_it_cannot_be_asked() -> None:
    with pytest.raises(UsageError, match="margin is a share"):
        self_repair([], margin=0.0)
    with pytest.raises(UsageError, match="no treatment 'other'"):
        self_repair(experiment(0.5, 1.0), treatment="other")
    with pytest.raises((MissingStatistic, KeyError)):
        self_repair([make_trace(make_sample(0), role="treatment", intervention={"ablate_heads": {"heads": [[0, 0]]}})])


def test_the_norms_scale_is_the_models_own() -> None:
    """Against the final norm's input, read by a hook: without a head it is smaller, and what is left counts more."""
    model = probe.load("needle")
    samples = list(probe.needle(lengths=(64,), depths=(0.5,), samples=5, seed=11).build(model.tokenizer))
    sizes: list[list[float]] = []

    def size(_module: Any, given: Any) -> None:
        sizes[-1].append(float(given[0][0, -1].double().square().mean().sqrt()))

    def read(heads: Any, role: str) -> list[Any]:
        sizes.append([])
        with probe.ablate_heads(heads)(model):
            found = [
                probe.trace(model, each, statistics=["span_logit"], max_new_tokens=1, check=False) for each in samples
            ]
            hook = model.hf.model.norm.register_forward_pre_hook(size)
            for each in samples:
                model.hf(torch.tensor([each.tokens]))
            hook.remove()
        return [
            StandIn(
                sample=t.sample, outcome=t.outcome, dataset=t.dataset, unit=f"{role} {t.sample.name}", condition=role,
                facts={"role": role, "intervention": {"ablate_heads": {"heads": heads}}},
            )
            for t in found
        ]  # fmt: skip

    with torch.no_grad():
        finding = self_repair([*read([], "baseline"), *read([(2, 5)], "treatment")])
    wanted = np.mean([before / after for before, after in zip(*sizes, strict=True)])
    assert detail(finding, "factor by which the norms' scale grew") == pytest.approx(wanted, rel=1e-4)
    assert wanted > 1.05
    assert finding.claim.startswith("No head stands behind the removed ones, which begin with layer 2")
