"""Significance by writing out every case: what the fast functions must agree with."""

import itertools
import math
from fractions import Fraction


def flip_p(differences):
    """Return the share of the 2^n choices of signs whose sum is at least as far from 0, in exact fractions."""
    values = [Fraction(value) for value in differences]
    far = abs(sum(values))
    sums = [
        sum(sign * value for sign, value in zip(signs, values, strict=True))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    return sum(abs(total) >= far for total in sums) / len(sums)


def signed_rank_p(differences):
    """Return Wilcoxon's exact two-sided p of differences without zeros and ties, over all 2^n choices of signs."""
    places = {value: place for place, value in enumerate(sorted(map(abs, differences)), 1)}
    count = len(differences)
    middle = count * (count + 1) / 4
    far = abs(sum(places[abs(value)] for value in differences if value > 0) - middle)
    # How many choices of signs have each sum of positive ranks, one rank after the other.
    ways = {0: 1}
    for place in range(1, count + 1):
        after = dict(ways)
        for total, number in ways.items():
            after[total + place] = after.get(total + place, 0) + number
        ways = after
    return sum(number for total, number in ways.items() if abs(total - middle) >= far) / 2**count


def percentile_interval(differences, level):
    """Return the percentile bootstrap interval of the mean, from all n^n equally likely resamples."""
    means = sorted(sum(drawn) / len(drawn) for drawn in itertools.product(differences, repeat=len(differences)))
    ends = ((1 - level) / 2, (1 + level) / 2)
    return tuple(means[math.ceil(share * len(means)) - 1] for share in ends)


def holm_rejects(p_values, limit):
    """Return which hypotheses Holm's procedure rejects: one by one from the smallest p, until one is too large."""
    rejected = set()
    for step, number in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        if p_values[number] > limit / (len(p_values) - step):
            break
        rejected.add(number)
    return rejected
