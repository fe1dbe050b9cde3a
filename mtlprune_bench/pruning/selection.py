"""Selection: exactly the weights that voters want most together, found without sorting all of their scores.

The definition is `by_ranks`: each voter's scores become ranks, the arbiter merges them, the highest stay. Where
the arbiter is an order statistic and there are many weights, `by_windows` comes to the same masks, to the bit. A
sample says between which two scores of each voter the decision falls; what lies beyond them is only counted, and
what lies between is ranked.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlprune_bench.pruning.arbiters import OrderStatistic
from mtlprune_bench.pruning.masks import Masks, count, holds, keep_top, kth_largest, places
from mtlprune_bench.pruning.ranks import ranks
from mtlprune_bench.tensors import NamedTensors

MANY = 1 << 16
"""From so many weights on, a sample pays."""
ABOVE, BELOW = 2.0, 0.0
"""What stands for the ranks, which are in (0, 1], of weights beyond all windows."""

Merge = Callable[[Tensor], Tensor]
"""An arbiter."""


def select(
    scores: Sequence[NamedTensors], names: Sequence[str], kept: int, merge: Merge, among: Masks | None = None
) -> dict[str, Tensor]:
    """Return the masks of the weights `names` that keep exactly those with the `kept` highest merged ranks.

    `scores` are each voter's, at least of those of the `names` that it sees; `merge` is the arbiter. With `among`,
    masks, only weights of these stay. Of equal merged ranks those that come first, in the order of the names
    and within a tensor in row-major order, stay.
    """
    seen = [{name: own[name] for name in names if name in own} for own in scores]
    seen = [own for own in seen if own]
    if isinstance(merge, OrderStatistic) and (size := _size(seen)) >= MANY:
        for width in widths(size):
            if (masks := by_windows(seen, names, kept, merge, width, among)) is not None:
                return masks
    return by_ranks(seen, names, kept, merge, among)


def sampled(size: int) -> float:
    """Return how many of `size` weights a sample has: as many as leave least to sort, first windows included."""
    return math.pow(1.5 * size, 2 / 3)


def widths(size: int) -> tuple[float, float]:
    """Return how far windows reach from the sample's merged rank to both sides; the second where the first missed.

    A rank in a sample of m is off by 0.5 / sqrt(m) at most, one time in three; the first is three times as wide.
    """
    error = 0.5 / math.sqrt(sampled(size))
    return 3 * error, 24 * error


def by_ranks(
    scores: Sequence[NamedTensors], names: Sequence[str], kept: int, merge: Merge, among: Masks | None = None
) -> dict[str, Tensor]:
    """Return what `select` does, by the definition."""
    return keep_top(_merged(scores, names, merge, among), kept)


def _merged(
    scores: Sequence[NamedTensors], names: Sequence[str], merge: Merge, among: Masks | None
) -> dict[str, Tensor]:
    """Return the merged rank of each weight, minus infinity where it is not `among` those that may stay."""
    opinions: dict[str, list[Tensor]] = {name: [] for name in names}
    for own in scores:
        for name, rank in ranks(own).items():
            opinions[name].append(rank)
    merged = {name: decided(own, merge) for name, own in opinions.items()}
    if among:
        # A voter may rank what may not stay above what another voter wants.
        merged = {name: rank.masked_fill(~among[name], -math.inf) for name, rank in merged.items()}
    return merged


def decided(opinions: Sequence[Tensor], merge: Merge) -> Tensor:
    """Return the only opinion of a weight, or what the arbiter makes of several."""
    return opinions[0] if len(opinions) == 1 else merge(torch.stack(list(opinions)))


@dataclass(frozen=True)
class Window:
    """The scores of a voter from `low` to `high`, between which the decision falls, and their exact ranks.

    `ranks` holds, by name, the places [m] of these scores in the flat weight, ascending, and the rank [m] of each.
    Scores below the window have ranks of at most `floor`, those above it of more than `ceiling`.
    """

    low: float
    high: float
    floor: float
    ceiling: float
    ranks: dict[str, tuple[Tensor, Tensor]]

    def ranks_at(self, name: str, score: Tensor, at: Tensor) -> Tensor:
        """Return the ranks [n] at places `at` [n] of the flat `score`; ABOVE or BELOW beyond the window."""
        own, known = self.ranks[name]
        values = score[at]
        higher = values > self.high
        found = torch.where(higher, ABOVE, BELOW).double()
        inside = places((values >= self.low) ^ higher)
        found[inside] = known[torch.searchsorted(own, at[inside])]
        return found


@dataclass
class Votes:
    """How many users of a weight have its elements [n] above their windows, and in or above them; both uint8."""

    above: Tensor
    within: Tensor
    users: int = 0


def by_windows(
    scores: Sequence[NamedTensors],
    names: Sequence[str],
    kept: int,
    merge: OrderStatistic,
    width: float,
    among: Masks | None = None,
) -> dict[str, Tensor] | None:
    """Return what `by_ranks` does, or None where windows of `width` to both sides of the sample's rank miss.

    The q-th largest of some ranks is above t if, and only if, at least q of them are. So elements that q users
    have above their windows stay, those that fewer have in or above them go, and the rest are few enough to be
    ranked.
    """
    limits = _limits(scores, names, kept, merge, width, among)
    if limits is None:
        return None
    flat = [{name: score.flatten() for name, score in own.items()} for own in scores]
    votes: dict[str, Votes] = {}
    windows = [_window(own, low, high, votes) for own, (low, high) in zip(flat, limits, strict=True)]
    floor, ceiling = max(one.floor for one in windows), min(one.ceiling for one in windows)
    stay, open_at, merged = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    for name in names:
        quorum = merge.quorum(votes[name].users)
        stay[name], maybe = (holds(operator.ge, part, quorum) for part in (votes[name].above, votes[name].within))
        if among:
            stay[name] &= among[name].flatten()
            maybe &= among[name].flatten()
        open_at[name] = places(maybe ^ stay[name])
        opinions = [
            window.ranks_at(name, own[name], open_at[name])
            for window, own in zip(windows, flat, strict=True)
            if name in own
        ]
        merged[name] = decided(
            [rank.masked_fill(rank > ceiling, ABOVE).masked_fill(rank <= floor, BELOW) for rank in opinions], merge
        )
    missing = kept - count(*stay.values())
    ranked = torch.cat(list(merged.values()))
    if not count(ranked == ABOVE) <= missing <= count(ranked > BELOW):
        return None
    for name, chosen in keep_top(merged, missing).items():
        stay[name][open_at[name][chosen]] = True
    shapes = {name: score.shape for own in scores for name, score in own.items()}
    return {name: stay[name].view(shapes[name]) for name in names}


def _window(own: NamedTensors, low: float, high: float, votes: dict[str, Votes]) -> Window:
    """Return the window of a voter from the flat scores of its `own` weights, and add up its `votes`."""
    inside, values, above = {}, [], 0
    for name, score in own.items():
        higher, within = holds(operator.gt, score, high), holds(operator.ge, score, low)
        above += count(higher)
        inside[name] = places(within ^ higher)
        values.append(score[inside[name]])
        if name not in votes:
            votes[name] = Votes(higher.view(torch.uint8), within.view(torch.uint8))
        else:
            votes[name].above += higher.view(torch.uint8)
            votes[name].within += within.view(torch.uint8)
        votes[name].users += 1
    total = sum(score.numel() for score in own.values())
    order = torch.sort(torch.cat(values), descending=True, stable=True).indices
    ranked = torch.empty(len(order), dtype=torch.float64, device=order.device)
    best = torch.arange(total - above, total - above - len(order), -1, dtype=torch.float64, device=order.device)
    ranked[order] = best / total
    parts = torch.split(ranked, [len(at) for at in inside.values()])
    return Window(
        low,
        high,
        floor=(total - above - len(order)) / total,
        ceiling=(total - above) / total,
        ranks={name: (inside[name], part) for name, part in zip(inside, parts, strict=True)},
    )


def _limits(
    scores: Sequence[NamedTensors],
    names: Sequence[str],
    kept: int,
    merge: Merge,
    width: float,
    among: Masks | None,
) -> list[tuple[float, float]] | None:
    """Return the lowest and the highest score of each voter's window, None where the sample has too little."""
    shapes = {name: score for own in scores for name, score in own.items()}
    fraction = sampled(_size(scores)) / _size(scores)
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randint(score.numel(), (math.ceil(score.numel() * fraction),), generator=generator)
        for name, score in ((name, shapes[name]) for name in names)
    }
    few = [{name: score.flatten()[drawn[name]] for name, score in own.items()} for own in scores]
    allowed = {name: among[name].flatten()[drawn[name]] for name in names} if among else None
    merged = torch.cat(list(_merged(few, names, merge, allowed).values()))
    place = round(kept * len(merged) / _size(scores))
    if not 0 < place <= len(merged):
        return None
    middle = kth_largest(merged, place)
    if middle == -math.inf:
        return None
    return [_span(torch.cat(list(own.values())), middle, width) for own in few]


def _span(sample: Tensor, middle: float, width: float) -> tuple[float, float]:
    """Return the scores of a voter's `sample` [m] that have about the ranks `middle` - and + `width`."""
    size = len(sample)
    first, last = math.floor(size * (1 - middle - width)), math.ceil(size * (1 - middle + width))
    low = kth_largest(sample, last + 1) if last < size else -math.inf
    return low, kth_largest(sample, first + 1) if first >= 0 else math.inf


def _size(scores: Sequence[NamedTensors]) -> int:
    """Return how many weights there are that some voter sees."""
    return sum({name: score.numel() for own in scores for name, score in own.items()}.values())
