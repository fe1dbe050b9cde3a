"""Pruning: from voters and their scores to masks of exactly the sparsity asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mtlprune_bench.errors import SparsityError
from mtlprune_bench.pruning.allocation import Group
from mtlprune_bench.pruning.arbiters import OR
from mtlprune_bench.pruning.components import Components
from mtlprune_bench.pruning.gradients import Voter
from mtlprune_bench.pruning.masks import Masks, count, keep_top, kept_count, sparsity
from mtlprune_bench.pruning.method import JOINT, FixedRatio, Method, Scorer
from mtlprune_bench.pruning.scorers import Scores, Scoring
from mtlprune_bench.pruning.selection import decided, select
from mtlprune_bench.tensors import NamedTensors


def voters_of(scope: str, loss_weights: Mapping[str, float], components: Components) -> tuple[Voter, ...]:
    """Return who has a say: with scope joint the weighted total loss, per-task each task's loss alone."""
    if scope == JOINT:
        return (Voter("all tasks", loss_weights, tuple(components.users)),)
    return tuple(Voter(task, {task: 1.0}, components.used_by(task)) for task in loss_weights)


def make_masks(
    method: Method, scoring: Scoring, target: float, current: Masks | None = None, scores: Scores | None = None
) -> dict[str, Tensor]:
    """Return the masks by which `method` brings the network to sparsity `target`.

    With `current` masks (empty: dense so far) weights already removed stay removed. With several rounds each
    keeps the same fraction of what the one before it left, which it scores with the rest set to zero. `scores`
    of a dense network are taken where they were made before, for a method with one round. Raises SparsityError
    where scores are not finite or the masks are not as sparse as asked.
    """
    assert scores is None or not (current or method.rounds > 1), "kept scores are those of a dense network"
    if isinstance(method.calibration, FixedRatio):
        scores = scores or scores_of(method, method.score, scoring, current)
        return fixed_masks(method, scores, scoring.voters, target, method.calibration)
    density = 1 - sparsity(current) if current else 1.0
    masks = dict(current or {})
    with _weights_restored(scoring, method.rounds > 1):
        for number in range(1, method.rounds + 1):
            aim = 1 - density * ((1 - target) / density) ** (number / method.rounds)
            aim = aim if number < method.rounds else target
            masks = _one_round(method, scoring, aim, masks, scores)
            if number < method.rounds:
                _zero(scoring, masks)
    return masks


def _one_round(
    method: Method, scoring: Scoring, target: float, current: Masks, scores: Scores | None
) -> dict[str, Tensor]:
    """Return masks of sparsity `target` from scores of the weights as they are, within `current` masks."""
    scores = scores or scores_of(method, method.score, scoring, current)
    shapes = {name: tuple(weight.shape) for name, weight in scoring.weights.items()}
    kept = kept_count(sum(map(math.prod, shapes.values())), target)
    masks: dict[str, Tensor] = {}
    for group in _fitting(method.allocation.groups(shapes, kept), current):
        masks |= settle(method, scores, group, current)
    check_sparsity(method, masks, kept, target)
    return {name: masks[name] for name in shapes}


def _fitting(groups: Sequence[Group], current: Masks) -> list[Group]:
    """Return `groups` none of which is to keep more than `current` masks left it.

    Fewer weights in all may be a weight more for some layer, as counts are rounded; others take it instead.
    """
    if not current:
        return list(groups)
    left = [count(*(current[name] for name in group.names)) for group in groups]
    kept = [min(group.kept, most) for group, most in zip(groups, left, strict=True)]
    over = sum(group.kept for group in groups) - sum(kept)
    while over and kept != left:
        for place, most in enumerate(left):
            if over and kept[place] < most:
                kept[place] += 1
                over -= 1
    return [dataclasses.replace(group, kept=number) for group, number in zip(groups, kept, strict=True)]


def scores_of(
    method: Method, scorer: Scorer | None, scoring: Scoring, candidates: Masks | None = None
) -> dict[str, dict[str, Tensor]]:
    """Return the scores of `candidates` (empty: of all weights), the rest at minus infinity."""
    assert scorer is not None, "a method that prunes has a scorer, which Method checks"
    scores = scorer(scoring)
    _check_scores(method, scores)
    return _restricted(scores, candidates) if candidates else scores


def _restricted(scores: Scores, candidates: Masks) -> dict[str, dict[str, Tensor]]:
    return {
        voter: {name: score.masked_fill(~candidates[name], float("-inf")) for name, score in own.items()}
        for voter, own in scores.items()
    }


@contextlib.contextmanager
def _weights_restored(scoring: Scoring, needed: bool) -> Iterator[None]:
    """Put back, on leaving, the weights as they were."""
    own = {name: weight.detach().clone() for name, weight in scoring.weights.items()} if needed else {}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in own.items():
                scoring.weights[name].copy_(weight)


def _zero(scoring: Scoring, masks: Masks) -> None:
    with torch.no_grad():
        for name, mask in masks.items():
            scoring.weights[name].masked_fill_(~mask, 0.0)


def settle(method: Method, scores: Scores, group: Group, candidates: Masks | None = None) -> dict[str, Tensor]:
    """Return the masks of a group's weights that keep exactly as many as it may, of `candidates` if there are any.

    Each voter's scores become ranks over the weights of the group that it sees; the arbiter merges the ranks
    of a weight that several see; the highest merged ranks stay. This is the mask rule of DiSparse (its
    equations 9 and 18) at the one keep ratio that gives the sparsity asked for.
    """
    # Without an arbiter there is one voter, as Method checks, and nothing to decide.
    return select(list(scores.values()), group.names, group.kept, method.arbiter or OR, candidates)


def fixed_masks(
    method: Method, scores: Scores, voters: Sequence[Voter], target: float, rule: FixedRatio
) -> dict[str, Tensor]:
    """Return the masks for a fixed keep ratio: each voter's own mask, then the arbiter's verdict on them."""
    ratio = 1 - target if rule.keep_ratio is None else rule.keep_ratio
    votes: dict[str, list[Tensor]] = {}
    for voter in voters:
        for name, mask in _own_mask(scores[voter.name], ratio, rule.ties).items():
            votes.setdefault(name, []).append(mask.to(torch.float64))
    return {name: decided(own, method.arbiter or OR) > 0 for name, own in votes.items()}


def _own_mask(scores: NamedTensors, ratio: float, ties: str) -> dict[str, Tensor]:
    """Return the mask of the floor(ratio * n) highest of n scores; with `ties` "keep" of all equal ones too."""
    # A little more, as 1 - 0.9 is a little below 0.1, and of 100 weights one too few would be kept.
    kept = int(ratio * sum(score.numel() for score in scores.values()) + 1e-6)
    masks = keep_top(scores, kept)
    if ties == "index" or kept == 0:
        return masks
    lowest = min(float(score[masks[name]].min()) for name, score in scores.items() if masks[name].any())
    return {name: score >= lowest for name, score in scores.items()}


def _check_scores(method: Method, scores: Scores) -> None:
    for voter, own in scores.items():
        for name, score in own.items():
            if not bool(torch.isfinite(score).all()):
                raise SparsityError(
                    f"Method '{method.name}' scored weight '{name}' with a value that is not finite, for {voter}."
                )


def check_sparsity(method: Method, masks: Masks, kept: int, target: float) -> None:
    """Raise SparsityError where `masks` do not keep exactly `kept` weights, as sparsity `target` asks."""
    reached = count(*masks.values())
    if reached != kept:
        raise SparsityError(
            f"Method '{method.name}' was asked for sparsity {target} and reached {sparsity(masks):.6f}: "
            f"{reached} weights are kept instead of {kept}."
        )
