"""Significance over seeds: what differences between paired runs say, and how little few of them can say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mtlprune_bench.seeds import derive

FEWEST = 3
"""Fewer pairs than these are not tested."""

MOST_FLIPS = 12
"""Most pairs whose 2^n sign flips are all tried; more are tested by their signed ranks."""

AT_ONCE = 64
"""How many rows of differences are resampled together, which bounds the memory that takes."""

CONFIDENCE = 0.95
RESAMPLES = 9999

COVERED = {3: 0.75, 5: 0.84, 10: 0.90}
"""The share of cases, by number of seeds, in which the interval of normal differences covers their true mean."""

FLIPS = "exact sign-flip permutation test of the mean"
RANKS = "Wilcoxon signed-rank test"


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the percentile bootstrap interval of the mean of `differences`, at CONFIDENCE.

    Equal differences give equal intervals. Of a few it is too narrow: it never leaves their range, and so, where
    they are spread symmetrically around the true mean, covers that in at most 1 - `smallest_p` of all cases.
    Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    return intervals([differences])[0]


def intervals(rows: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Return the `interval` of each of `rows`, all of one length; at once, which is faster than one by one."""
    from scipy.stats import bootstrap

    found: list[tuple[float, float]] = []
    for first in range(0, len(rows), AT_ONCE):
        ends = bootstrap(
            (np.asarray(rows[first : first + AT_ONCE], dtype=float),),
            np.mean,
            axis=-1,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(derive(0, "bootstrap")),
        ).confidence_interval
        found += zip(ends.low.tolist(), ends.high.tolist(), strict=True)
    return found


def test_name(count: int) -> str:
    """Return the name of the test that `p_value` makes of `count` differences."""
    return FLIPS if count <= MOST_FLIPS else RANKS


def p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value, in (0, 1], of `differences` being spread symmetrically around 0.

    Up to MOST_FLIPS of them: the share of all 2^n choices of signs whose mean is as far from 0. More: Wilcoxon's
    signed ranks, differences of 0 left out.
    Source: R. A. Fisher, The Design of Experiments, 1935, section 21; F. Wilcoxon, Biometrics Bulletin 1(6), 1945.
    """
    return p_values([differences])[0]


def p_values(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the `p_value` of each of `rows`, all of one length; at once, which is faster than one by one."""
    from scipy.stats import permutation_test, wilcoxon

    found: list[float] = []
    for first in range(0, len(rows), AT_ONCE):
        values = np.asarray(rows[first : first + AT_ONCE], dtype=float)
        if test_name(values.shape[1]) == RANKS:
            found += [float(wilcoxon(own).pvalue) if own.any() else 1.0 for own in values]
        else:
            flips = permutation_test(
                (values,),
                np.mean,
                axis=-1,
                permutation_type="samples",
                vectorized=True,
                n_resamples=2**MOST_FLIPS,
            )
            found += np.where(values.any(axis=1), flips.pvalue, 1.0).tolist()
    return found


def smallest_p(count: int) -> float:
    """Return the smallest two-sided p-value that `count` differences can have: all signs equal, 2 cases of 2^n."""
    return min(1.0, 2 * 0.5**count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return `p_values`, in their order, corrected for there being several of them.

    Where those below a limit are called significant, the probability of any false call is below that limit.
    Source: S. Holm, Scandinavian Journal of Statistics 6(2), 1979.
    """
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[number]))
        corrected[number] = largest
    return corrected
