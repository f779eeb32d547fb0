"""Analyses stay quiet on nulls, find what was planted, and the published table says so."""

from __future__ import annotations

import json

import pytest

from probe import discovery
from tests.effects import page, playing
from tests.effects.playing import MOST_FALSE

ANALYSES = playing.analyses()
FEW = 2


def test_the_bound_is_the_exact_one() -> None:
    # (1 - p)^n = 0.05 where none of n is supported; the share itself where all are.
    assert playing.upper_bound(0, 200) == pytest.approx(1 - 0.05 ** (1 / 200))
    assert playing.upper_bound(7, 7) == 1
    # Of 200 at most 4 may be.
    assert playing.upper_bound(4, 200) <= MOST_FALSE < playing.upper_bound(5, 200)


def test_something_is_planted_for_every_analysis() -> None:
    assert set(ANALYSES) == {*discovery.names("analyses")}


@pytest.mark.parametrize("name", ANALYSES)
def test_few_nulls_are_supported(name: str) -> None:
    for counted in playing.on_nulls(playing.effects(name, models=False), range(FEW)):
        # Once in 400 runs both of two are, where one in twenty may be.
        assert counted["supported"] < FEW, counted


@pytest.mark.parametrize("name", ANALYSES)
def test_the_strongest_effect_is_found_with_its_heads_in_the_same_traces_for_the_same_seed(name: str) -> None:
    effects = playing.effects(name, models=False)
    assert sorted(effects.strengths) == list(effects.strengths)
    findings = [effects.finding(effects.planted(effects.strengths[-1], seed)) for seed in (0, 0, 1)]
    assert findings[0] == findings[1]
    for finding in findings[1:]:
        assert finding.verdict == "supported", finding.claim
        if effects.truth is not None:
            assert effects.found(finding) == effects.truth


def test_the_page_is_what_was_measured() -> None:
    entries = page.stored()
    assert page.PAGE.read_text(encoding="utf-8") == page.page(entries), "run `python -m tests.effects`"


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ANALYSES)
def test_the_table(name: str) -> None:
    """Measures anew what docs/nulls.md says, and writes it there."""
    entry = playing.measured(name, num_nulls=200, num_planted=40)
    before = page.stored()
    page.store(before | {name: entry | {"date": before.get(name, {}).get("date", "")}})
    assert page.worst(entry)["upper_bound"] <= MOST_FALSE, json.dumps(entry["nulls"])
    last = entry["planted"][-1]
    assert last["supported"] == last["n"], json.dumps(entry["planted"])
    if "recall" in last:
        assert (last["precision"], last["recall"]) == (1.0, 1.0)
