"""Pruning: from voters and their scores to masks of exactly the sparsity asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlprune_bench.allocation import Group
from mtlprune_bench.components import Components
from mtlprune_bench.errors import SparsityError
from mtlprune_bench.gradients import Voter
from mtlprune_bench.masks import Masks, keep_top, kept_count, sparsity
from mtlprune_bench.method import JOINT, FixedRatio, Method
from mtlprune_bench.ranks import ranks
from mtlprune_bench.scorers import Scores, Scoring
from mtlprune_bench.tensors import NamedTensors


def voters_of(scope: str, loss_weights: Mapping[str, float], components: Components) -> tuple[Voter, ...]:
    """Return who has a say: with scope joint the weighted total loss, per-task each task's loss alone."""
    if scope == JOINT:
        return (Voter("all tasks", loss_weights, tuple(components.users)),)
    return tuple(Voter(task, {task: 1.0}, components.used_by(task)) for task in loss_weights)


def make_masks(method: Method, scoring: Scoring, target: float, current: Masks | None = None) -> dict[str, Tensor]:
    """Return the masks by which `method` brings the network to sparsity `target`.

    With `current` masks (empty: dense so far) weights already removed stay removed. Raises SparsityError
    where scores are not finite or the masks are not as sparse as asked.
    """
    assert method.score is not None, "a method that prunes has a scorer, which Method checks"
    scores = method.score(scoring)
    _check_scores(method, scores)
    if current:
        scores = {
            voter: {name: score.masked_fill(~current[name], float("-inf")) for name, score in own.items()}
            for voter, own in scores.items()
        }
    shapes = {name: tuple(weight.shape) for name, weight in scoring.weights.items()}
    total = sum(weight.numel() for weight in scoring.weights.values())
    kept = kept_count(total, target)
    if isinstance(method.calibration, FixedRatio):
        return fixed_masks(method, scores, scoring.voters, target, method.calibration)
    masks: dict[str, Tensor] = {}
    for group in method.allocation.groups(shapes, kept):
        masks |= settle(method, scores, group)
    _check_sparsity(method, masks, kept, target)
    return {name: masks[name] for name in shapes}


def settle(method: Method, scores: Scores, group: Group) -> dict[str, Tensor]:
    """Return the masks of a group's weights that keep exactly as many as it may.

    Each voter's scores become ranks over the weights of the group that it sees; the arbiter merges the ranks
    of a weight that several see; the highest merged ranks stay. This is the mask rule of DiSparse (its
    equations 9 and 18) at the one keep ratio that gives the sparsity asked for.
    """
    opinions: dict[str, list[Tensor]] = {name: [] for name in group.names}
    for own in scores.values():
        if seen := {name: own[name] for name in group.names if name in own}:
            for name, rank in ranks(seen).items():
                opinions[name].append(rank)
    return keep_top(merge(method, opinions), group.kept)


def merge(method: Method, opinions: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Return one tensor a weight: the only opinion of it, or what the arbiter makes of several."""
    return {
        name: own[0] if len(own) == 1 else method.arbiter(torch.stack(list(own))) for name, own in opinions.items()
    }


def fixed_masks(
    method: Method, scores: Scores, voters: Sequence[Voter], target: float, rule: FixedRatio
) -> dict[str, Tensor]:
    """Return the masks for a fixed keep ratio: each voter's own mask, then the arbiter's verdict on them."""
    ratio = 1 - target if rule.keep_ratio is None else rule.keep_ratio
    votes: dict[str, list[Tensor]] = {}
    for voter in voters:
        for name, mask in _own_mask(scores[voter.name], ratio, rule.ties).items():
            votes.setdefault(name, []).append(mask.to(torch.float64))
    return {name: merged > 0 for name, merged in merge(method, votes).items()}


def _own_mask(scores: NamedTensors, ratio: float, ties: str) -> dict[str, Tensor]:
    """Return the mask of the floor(ratio * n) highest of n scores; with `ties` "keep" of all equal ones too."""
    # A little more, as 1 - 0.9 is a little below 0.1, and of 100 weights one too few would be kept.
    count = int(ratio * sum(score.numel() for score in scores.values()) + 1e-6)
    masks = keep_top(scores, count)
    if ties == "index" or count == 0:
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


def _check_sparsity(method: Method, masks: Masks, kept: int, target: float) -> None:
    reached = sum(int(mask.sum()) for mask in masks.values())
    if reached != kept:
        raise SparsityError(
            f"Method '{method.name}' was asked for sparsity {target} and reached {sparsity(masks):.6f}: "
            f"{reached} weights are kept instead of {kept}."
        )
