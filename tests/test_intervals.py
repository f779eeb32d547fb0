from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from probe.intervals import (
    clopper_pearson,
    cluster_bootstrap,
    mcnemar_exact,
    mean_ends,
    p_text,
    paired_difference,
    resamples,
    sign_flip,
    square_and_add,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (13, 20), (1, 400)])
def test_clopper_pearson_inverts_the_binomial_tails(successes, n):
    interval = clopper_pearson(successes, n)
    if successes:
        assert stats.binom.sf(successes - 1, n, interval.low) == pytest.approx(0.025, rel=1e-6)
    else:
        assert interval.low == 0
    if successes < n:
        assert stats.binom.cdf(successes, n, interval.high) == pytest.approx(0.025, rel=1e-6)
    else:
        assert interval.high == 1


def test_no_observation_has_no_interval():
    assert clopper_pearson(0, 0) is None
    assert cluster_bootstrap([], []) is None
    assert cluster_bootstrap([0.4], ["a"]) is None
    assert mcnemar_exact([], []) is None
    assert sign_flip([]) is None


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("n", [2, 7, 40])
def test_where_all_agree_the_bound_is_clopper_pearsons(value, n):
    interval = cluster_bootstrap([value] * n, [str(i) for i in range(n)], bounds=(0, 1))
    exact = clopper_pearson(int(value * n), n)
    assert interval.low == pytest.approx(exact.low)
    assert interval.high == pytest.approx(exact.high)


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for i in range(300):
        values = generator.normal(3.0, 1.0, 40)
        interval = cluster_bootstrap(values, [str(j) for j in range(40)], seed=i, draws=500)
        covered += interval.low <= 3.0 <= interval.high
    # A bootstrap of 40 values covers a little less than 95 %; binomial noise of 300 adds ± 2.5.
    assert 0.89 <= covered / 300 <= 0.98


@pytest.mark.parametrize("n", [6, 15, 60])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_bootstrap_is_scipys_bca(n, skewed):
    values = np.random.default_rng(n).lognormal(0, 1.0 if skewed else 0.1, n)
    interval = cluster_bootstrap(values, [f"{i:03d}" for i in range(n)], draws=40_000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=40_000, rng=np.random.default_rng(1)
    ).confidence_interval
    spread = values.std() / n**0.5
    # The quantiles of 40,000 resamples still move by as much from seed to seed, theirs as ours.
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=0.15 * spread)
    assert interval.method == "BCa bootstrap over prompts"


def test_a_quantity_that_does_not_vary_has_no_width_beside_one_that_does():
    values = np.stack([np.full(9, 0.1), np.arange(9.0)], axis=1)
    low, high = mean_ends(values)
    assert low[0] == pytest.approx(0.1) == high[0]
    assert low[1] < 4 < high[1]


def test_repeats_of_a_prompt_add_no_certainty():
    generator = np.random.default_rng(1)
    values = generator.normal(size=12)
    once = cluster_bootstrap(values, [str(i) for i in range(12)])
    often = cluster_bootstrap(np.repeat(values, 50), [str(i) for i in range(12) for _ in range(50)])
    assert often.low == pytest.approx(once.low)
    assert often.high == pytest.approx(once.high)


def test_arrays_get_the_same_ends_as_their_parts():
    values = np.random.default_rng(2).normal(size=(9, 2, 3))
    low, high = mean_ends(values)
    for at in np.ndindex(2, 3):
        alone = cluster_bootstrap(values[(slice(None), *at)], list("abcdefghi"))
        assert (low[at], high[at]) == pytest.approx((alone.low, alone.high))


def test_the_same_seed_gives_the_same_interval_in_any_order():
    values, names = [0.1, 0.5, 0.2, 0.9, 0.4], list("edcba")
    first = cluster_bootstrap(values, names, seed=3)
    assert cluster_bootstrap(values[::-1], names[::-1], seed=3) == first
    assert cluster_bootstrap(values, names, seed=4) != first


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        cluster_bootstrap([0.1, float("nan")], ["a", "b"])


def test_resamples_keep_the_number_of_prompts():
    assert (resamples(7, draws=50).sum(axis=1) == 7).all()


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (5, 0), (3, 9), (10, 10)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(only_first, only_second):
    first = [True] * only_first + [False] * only_second + [True] * 4
    second = [False] * only_first + [True] * only_second + [True] * 4
    n = only_first + only_second
    expected = stats.binomtest(only_first, n).pvalue if n else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(expected)


def test_sign_flips_are_exact_for_few_pairs():
    assert sign_flip([1.0] * 5) == pytest.approx(2 / 2**5)
    assert sign_flip([1.0, -1.0]) == 1.0


def test_sign_flips_agree_with_scipy_for_many_pairs():
    values = np.random.default_rng(5).normal(0.4, 1.0, 30)
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=9_999, rng=np.random.default_rng(0)
    ).pvalue
    assert sign_flip(values) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Newcombe 1998, table II, method 10.
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 20), (0.6791, 1.0)),
    ],
)
def test_differences_of_proportions_have_newcombes_interval(first, second, expected):
    interval = square_and_add([(1.0, *first), (-1.0, *second)])
    assert (interval.low, interval.high) == pytest.approx(expected, abs=6e-5)


def pairs(both, only_first, only_second, neither):
    table = [(True, True)] * both + [(True, False)] * only_first
    return np.array(table + [(False, True)] * only_second + [(False, False)] * neither).T


@pytest.mark.parametrize("n", [1, 5, 6, 10])
def test_the_paired_interval_holds_0_exactly_where_mcnemar_does_not_reject(n):
    for only_first in range(n + 1):
        for only_second in range(n + 1 - only_first):
            for both in range(n + 1 - only_first - only_second):
                first, second = pairs(both, only_first, only_second, n - only_first - only_second - both)
                interval = paired_difference(first, second)
                assert (interval.low <= 0 <= interval.high) == (mcnemar_exact(first, second) > 0.05)
                assert interval.low <= first.mean() - second.mean() <= interval.high
                assert interval.low < interval.high


def test_the_paired_interval_turns_with_its_arguments():
    first, second = pairs(20, 12, 2, 16)
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_the_paired_interval_covers_the_difference_as_often_as_it_says():
    generator = np.random.default_rng(0)
    for cells in ((0.3, 0.1, 0.5, 0.1), (0.0, 0.02, 0.9, 0.08), (0.2, 0.05, 0.05, 0.7)):
        drawn = generator.multinomial(12, cells, size=200)
        intervals = [paired_difference(*pairs(*map(int, each))) for each in drawn]
        covered = np.mean([i.low <= cells[1] - cells[2] <= i.high for i in intervals])
        assert covered >= 0.93


def test_a_p_value_at_the_floor_of_its_draws_is_a_bound():
    assert p_text(1 / 5_000, 4_999) == "p ≤ 0.0002"
    assert p_text(2 / 5_000, 4_999) == "p = 0.0004"
    assert p_text(2 * 0.5**54) == "p < 0.0001"
    assert p_text(0.0625) == "p = 0.062"
