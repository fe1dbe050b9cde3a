"""Significance: intervals and p-values are those of every case written out, and are what they are said to be."""

import numpy as np
import pytest
from references.significance import flip_p, holm_rejects, percentile_interval, signed_rank_p
from scipy.stats import kstest, permutation_test, wilcoxon

from mtlprune_bench.results.significance import (
    CONFIDENCE,
    COVERED,
    FEWEST,
    FLIPS,
    MOST_FLIPS,
    RANKS,
    holm,
    interval,
    p_value,
    smallest_p,
)
from mtlprune_bench.results.significance import test_name as name_of


@pytest.mark.parametrize("count", [3, 4, 5, 8, 12])
def test_the_flip_test_is_the_share_of_all_choices_of_signs(count):
    generator = np.random.default_rng(count)
    for shift in (0, 0.5, 2):
        differences = (generator.normal(size=count) + shift).tolist()
        assert p_value(differences) == pytest.approx(flip_p(differences), abs=1e-12)


def test_the_flip_test_is_scipys_of_two_paired_samples():
    generator = np.random.default_rng(1)
    ours, theirs = generator.normal(loc=0.7, size=7), generator.normal(size=7)
    whole = permutation_test(
        (ours, theirs), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert p_value((ours - theirs).tolist()) == pytest.approx(whole.pvalue, abs=1e-12)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        # Only the flips of all signs have a mean as far from 0: 2 of 8.
        ([1, 2, 4], 0.25),
        # |1 + 2 - 4| = 1, and every sum of these is odd, so at least 1 from 0: 8 of 8.
        ([1, 2, -4], 1.0),
        # |1 + 4 - 2| = 3; sums are 7, 5, 3 and 1, each twice: 6 of 8.
        ([1, -2, 4], 0.75),
        ([0, 0, 0], 1.0),
        # A zero has two signs that are the same: 2 x 2 of 8.
        ([0, 1, 1], 0.5),
        # Ties in floating point: 0.1 + 0.2 is not 0.3, and still as far from 0 as its own flip.
        ([0.1, 0.2, -0.3], 1.0),
    ],
)
def test_p_by_hand(differences, p):
    assert p_value(differences) == pytest.approx(p)
    assert p_value([-value for value in differences]) == pytest.approx(p), "two-sided"


@pytest.mark.parametrize("count", [3, 5, MOST_FLIPS, MOST_FLIPS + 1, 20])
def test_no_p_is_smaller_than_two_cases_of_all_signs(count):
    differences = np.random.default_rng(count).uniform(1, 2, size=count).tolist()
    assert p_value(differences) == pytest.approx(smallest_p(count))
    assert smallest_p(count) == pytest.approx(2 * 0.5**count)


def test_one_pair_cannot_say_anything():
    assert smallest_p(1) == 1
    assert smallest_p(FEWEST) == 0.25


def test_more_than_a_dozen_differences_are_tested_by_their_signed_ranks():
    differences = (np.random.default_rng(3).normal(size=MOST_FLIPS + 1) + 0.5).tolist()
    assert (name_of(len(differences)), name_of(len(differences) - 1)) == (RANKS, FLIPS)
    assert p_value(differences) == pytest.approx(signed_rank_p(differences), abs=1e-12)
    assert p_value(differences) == wilcoxon(differences).pvalue
    # The test is by rank: how far the largest is from 0 changes the mean and not the p-value.
    largest = max(range(len(differences)), key=lambda place: abs(differences[place]))
    assert p_value([100 * v if place == largest else v for place, v in enumerate(differences)]) == p_value(
        differences
    )
    assert p_value([0.0] * 20) == 1


def test_where_nothing_differs_p_is_uniform():
    generator = np.random.default_rng(7)
    found = [p_value(generator.normal(size=10).tolist()) for _ in range(200)]
    assert kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.04)


@pytest.mark.parametrize("differences", [[0.1, 0.2, 0.6], [-1.0, 0.5, 2.0, 4.0], [3.0, -1.0, 0.0, 2.5, 7.0]])
def test_the_interval_is_that_of_all_resamples(differences):
    low, high = percentile_interval(differences, CONFIDENCE)
    spread = max(differences) - min(differences)
    assert interval(differences) == pytest.approx((low, high), abs=0.03 * spread)


def test_the_interval_of_three_is_their_range_and_of_equal_differences_a_point():
    # Three equal draws are 1 of 27 resamples, more than the 2.5 % that the interval leaves out at each end.
    assert interval([0.1, 0.2, 0.6]) == pytest.approx((0.1, 0.6))
    assert interval([0.3, 0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3))


def test_the_interval_is_the_same_every_time_and_turns_with_its_sign():
    differences = [0.3, -0.1, 0.8, 0.25]
    assert interval(differences) == interval(differences)
    low, high = interval([-value for value in differences])
    assert (-high, -low) == pytest.approx(interval(differences), abs=0.03)


@pytest.mark.parametrize("count", COVERED)
def test_the_interval_covers_the_truth_as_often_as_is_said(count):
    generator = np.random.default_rng(count)
    trials = generator.normal(loc=2, size=(400, count))
    covered = np.mean([low <= 2 <= high for low, high in map(interval, trials)])
    assert covered == pytest.approx(COVERED[count], abs=0.04)
    assert covered <= 1 - smallest_p(count) + 0.04


def test_holm_by_hand():
    # 0.005, 0.01, 0.03 and 0.04, times 4, 3, 2 and 1: 0.02, 0.03, 0.06 and, as none is below the one before, 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_one_alone_and_stays_a_probability():
    assert holm([0.2]) == [0.2]
    assert holm([0.25, 0.25, 0.25, 0.25, 0.25]) == [1.0] * 5
    assert holm([]) == []


def test_holm_calls_significant_what_the_procedure_rejects():
    generator = np.random.default_rng(5)
    for count in range(1, 12):
        p_values = (generator.uniform(size=count) ** 3).tolist()
        for limit in (0.01, 0.05, 0.2):
            called = {number for number, value in enumerate(holm(p_values)) if value <= limit}
            assert called == holm_rejects(p_values, limit)
