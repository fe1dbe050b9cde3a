"""Regrowth: drop the kept weights that are missed least, and grow others back in their place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlprune_bench.pruning.allocation import Group
from mtlprune_bench.pruning.arbiters import OR
from mtlprune_bench.pruning.masks import Masks, count, keep_top, kept_count
from mtlprune_bench.pruning.method import PER_TASK, Method
from mtlprune_bench.pruning.prune import check_sparsity, scores_of, settle
from mtlprune_bench.pruning.schedules import Update
from mtlprune_bench.pruning.scorers import Scores, Scoring
from mtlprune_bench.pruning.selection import decided


@dataclass(frozen=True)
class Regrown:
    """The masks after an update, and which of their weights were `grown`, both boolean, by weight name."""

    masks: dict[str, Tensor]
    grown: dict[str, Tensor]


def regrow_masks(method: Method, scoring: Scoring, update: Update, current: Masks) -> Regrown:
    """Return the masks that `method` makes of `current` ones by dropping and growing weights.

    Every group of the allocation that may keep n weights first drops to n - trunc(n * regrow), and then
    each voter grows as many as are missing where it would like them most, among all that are not kept, those
    just dropped included (RigL, algorithm 1). The arbiter decides on weights that several voters see, so that
    a shared layer may end with more than n; the next update drops them (DiSparse, section 4.7). An update
    that regrows nothing leaves exactly n. Layers that may keep all their weights are left alone.
    """
    assert method.grow is not None, "a method that regrows has a scorer to grow by, as was checked before the run"
    assert update.regrow is not None, "an update that only prunes is none of regrowth"
    shapes = {name: tuple(weight.shape) for name, weight in scoring.weights.items()}
    total = sum(weight.numel() for weight in scoring.weights.values())
    groups = method.allocation.groups(shapes, kept_count(total, update.sparsity))
    scores = scores_of(method, method.drop, scoring)
    survivors: dict[str, Tensor] = {}
    for group in groups:
        survivors |= _survivors(method, scores, group, current, update.regrow)
    del scores  # they take more memory than the network
    vacant = {name: ~mask for name, mask in survivors.items()}
    missing = {group: group.kept - _count(survivors, group.names) for group in groups}
    grown = {name: torch.zeros_like(mask) for name, mask in survivors.items()}
    if scores_growth(method, update):
        scores = scores_of(method, method.grow, scoring)
        for group, number in missing.items():
            wanted = _among(scores, group, vacant)
            # At the last update the count has to be exact, whatever the arbiter makes of the votes.
            exact = update.regrow == 0
            new = settle(method, wanted, Group(group.names, number), vacant) if exact else None
            grown |= _voted(method, wanted, group, number, vacant) if new is None else new
    masks = {name: survivors[name] | grown[name] for name in shapes}
    if update.regrow == 0:
        check_sparsity(method, masks, sum(group.kept for group in groups), update.sparsity)
    return Regrown(masks, {name: grown[name] for name in shapes})


def scores_growth(method: Method, update: Update) -> bool:
    """Return whether `update` scores what to grow; known without the masks, so that its cost is.

    The last update regrows nothing, but makes up for what an arbiter between voters did not let grow.
    """
    return bool(update.regrow) or method.scope == PER_TASK


def _survivors(method: Method, scores: Scores, group: Group, current: Masks, regrow: float) -> dict[str, Tensor]:
    """Return which of the `current` weights of `group` are not dropped."""
    size = sum(current[name].numel() for name in group.names)
    if group.kept == size:
        return {name: torch.ones_like(current[name]) for name in group.names}
    kept = group.kept - int(group.kept * regrow)
    own = _among(scores, group, current)
    return settle(method, own, Group(group.names, min(kept, _count(current, group.names))), current)


def _among(scores: Scores, group: Group, candidates: Masks) -> Scores:
    """Return the scores of a group's weights, those that are no candidates at minus infinity."""
    return {
        voter: {name: own[name].masked_fill(~candidates[name], -math.inf) for name in group.names if name in own}
        for voter, own in scores.items()
    }


def _voted(method: Method, scores: Scores, group: Group, number: int, vacant: Masks) -> dict[str, Tensor]:
    """Return what the arbiter lets grow in `group`, where each voter asks for its share of `number` weights."""
    size = sum(vacant[name].numel() for name in group.names)
    votes: dict[str, list[Tensor]] = {name: [] for name in group.names}
    for own in scores.values():
        if seen := {name: own[name] for name in group.names if name in own}:
            share = round(number * sum(score.numel() for score in seen.values()) / size)
            share = min(share, _count(vacant, seen))
            for name, mask in keep_top(seen, share).items():
                votes[name].append(mask.to(torch.float64))
    return {name: decided(own, method.arbiter or OR) > 0 for name, own in votes.items()}


def _count(masks: Masks, names: Mapping[str, object] | tuple[str, ...]) -> int:
    """Return how many weights the masks of `names` keep."""
    return count(*(masks[name] for name in names))
