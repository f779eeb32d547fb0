"""A control is random, of the same size in the same layers, of like norm, and never holds what it must not."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.errors import UsageError
from probe.hooks.matched_heads import matched_heads


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[tuple[int, int]], np.ndarray, set[tuple[int, int]], int, int]:
    num_layers, num_heads = draw(st.integers(1, 4)), draw(st.integers(4, 16))
    every = list(itertools.product(range(num_layers), range(num_heads)))
    heads = draw(st.lists(st.sampled_from(every), unique=True, min_size=1, max_size=4))
    exclude = set(draw(st.lists(st.sampled_from(every), unique=True, max_size=3)))
    norms = np.random.default_rng(draw(st.integers(0, 99))).lognormal(size=(num_layers, num_heads))
    return heads, norms, exclude, draw(st.integers(1, 30)), draw(st.integers(0, 9))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_every_draw_keeps_the_promises(case: tuple[list[tuple[int, int]], np.ndarray, set, int, int]) -> None:  # type: ignore[type-arg]
    heads, norms, exclude, draws, seed = case
    wanted = Counter(layer for layer, _ in heads)
    free = {
        layer: [h for h in range(norms.shape[1]) if (layer, h) not in exclude and (layer, h) not in heads]
        for layer in wanted
    }
    if any(len(free[layer]) < count for layer, count in wanted.items()):
        with pytest.raises(UsageError, match=r"layer \d+ has \d heads that are neither"):
            matched_heads(heads, norms, exclude, draws, seed)
        return
    sets = matched_heads(heads, norms, exclude, draws, seed)
    exist = np.prod([len(list(itertools.combinations(free[layer], count))) for layer, count in wanted.items()])
    assert len(sets) == len({frozenset(each) for each in sets}) == min(draws, exist)
    for each in sets:
        assert len(set(each)) == len(heads)
        assert Counter(layer for layer, _ in each) == wanted
        assert not set(each) & (set(heads) | exclude)
    assert matched_heads(heads, norms, exclude, draws, seed) == sets


def test_heads_of_the_nearest_norm_are_drawn_first() -> None:
    norms = np.array([[10.0, 1.0, 9.0, 1.2, 11.0, 0.9, 1.1, 12.0]])
    for drawn in matched_heads([(0, 0)], norms, draws=2, seed=3):
        assert drawn[0][1] in (2, 4)
    for drawn in matched_heads([(0, 1)], norms, exclude=[(0, 6)], draws=2, seed=3):
        assert drawn[0][1] in (3, 5)
    assert {each[0][1] for each in matched_heads([(0, 0)], norms, draws=3)} == {2, 4, 7}


def test_draws_spread_evenly_over_the_pool() -> None:
    norms = np.ones((1, 16))
    counts = Counter(head for each in matched_heads([(0, 0), (0, 1)], norms, draws=91) for _, head in each)
    assert set(counts.values()) == {13}
    drawn = [matched_heads([(0, 0), (0, 1)], norms, draws=1, seed=seed)[0] for seed in range(300)]
    assert len(set(drawn)) > 4


def test_another_seed_draws_otherwise() -> None:
    norms = np.ones((2, 16))
    assert len({tuple(matched_heads([(0, 0), (1, 1)], norms, draws=5, seed=seed)) for seed in range(5)}) == 5


def test_where_fewer_sets_exist_all_of_them_come_back() -> None:
    sets = matched_heads([(0, 0), (0, 1)], np.ones((1, 5)), draws=20)
    assert sorted(sets) == [((0, 2), (0, 3)), ((0, 2), (0, 4)), ((0, 3), (0, 4))]


def test_heads_without_a_norm_are_never_drawn() -> None:
    norms = np.array([[1.0, 1.0, np.nan, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert {each[0] for each in matched_heads([(0, 0)], norms, draws=9)} == {(0, 1), (0, 3)}
    with pytest.raises(UsageError, match="not finite"):
        matched_heads([(0, 2)], norms)


@pytest.mark.parametrize("head", [[0, 99], [0, -1], [99, 0], [-1, 0]])
def test_a_head_that_is_not_there_is_a_usage_error_that_tells_how_many_there_are(head: list[int]) -> None:
    with pytest.raises(UsageError, match=r"layer (0 has no head (99|-1): .* 4 heads|(99|-1) has no norms)"):
        matched_heads([head], np.ones((2, 4)))  # type: ignore[list-item]


@pytest.mark.parametrize(("heads", "draws"), [([], 3), ([(0, 0)], 0), ([(5, 0)], 3)])
def test_what_cannot_be_drawn_is_a_usage_error(heads: list[tuple[int, int]], draws: int) -> None:
    with pytest.raises(UsageError):
        matched_heads(heads, np.ones((1, 4)), draws=draws)


def test_it_imports_no_torch() -> None:
    code = "import sys, probe.hooks.matched_heads; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
