"""Checks of what makes masks: plans, scores, and what arbiters and allocations make of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from mtlprune_bench.pruning.masks import kept_count
from mtlprune_bench.pruning.method import PER_TASK, Exact
from mtlprune_bench.pruning.prune import make_masks
from mtlprune_bench.pruning.ranks import ranks
from mtlprune_bench.pruning.regrow import regrow_masks
from mtlprune_bench.pruning.schedules import Update
from mtlprune_bench.pruning.scorers import Scores, Scoring
from mtlprune_bench.testing.case import ASKED, SPARSITIES, Case, pruning, scoring_of, state_of, strange_generators
from mtlprune_bench.testing.checks import METHODS, contract

ARBITERS = ("or", "majority", "strict-majority", "and", "at-least:2")

ROUNDING = 1e-3
"""What the order of a sum may change of a score, as a fraction of the largest one."""

GENERATOR = "Draw from scoring.generator(purpose), never from a global generator, and keep nothing between calls."
PASSES = "Correct passes(voters) of its scorers: each call of the network and of torch.autograd.grad is a pass."
PLAN = "Correct plan(sparsity, recipe) of its schedule."
RANDOM = "Let its scores depend on the weights, on the batches, or on scoring.generator(purpose)."
TRACE = (
    "Score inside `with untouched(scoring.model):`, by torch.autograd.grad and not by backward(); put back the "
    "weights that a scorer changes; draw from scoring.generator(purpose)."
)
UNPLANNED = "it has no plan"
UNSCORED = "it has no scorers"


@contract(METHODS, "schedules")
def check_plan(case: Case) -> str | None:
    """Updates come in order, within training, ever sparser, and the last has the sparsity asked for."""
    for asked in SPARSITIES:
        stages = case.stages(case.folder, asked)
        if pruning(stages) is None:
            return UNPLANNED
        plan = stages.experiment.plan
        assert plan, f"has a plan without updates. {PLAN}"
        steps = [update.step for update in plan]
        assert steps == sorted(steps), f"updates its masks before steps {steps}, which go back. {PLAN}"
        fractions = [*(update.sparsity for update in plan), *(update.regrow or 0.0 for update in plan)]
        inside = all(0 <= fraction < 1 for fraction in fractions)
        assert inside, f"has sparsities or fractions to regrow outside of [0, 1): {fractions}. {PLAN}"
        pruned = [update.sparsity for update in plan if update.regrow is None]
        assert pruned == sorted(pruned), f"prunes to sparsities {pruned}, which go back. {PLAN}"
        assert plan[-1].sparsity == asked, f"ends at sparsity {plan[-1].sparsity} instead of {asked}. {PLAN}"
    return None


@contract(METHODS, "scorers")
def check_scores(case: Case) -> str | None:
    """Every voter gives each weight that it sees a score, of the weight's shape, and finite."""
    if not case.axes:
        return UNSCORED
    for axis, scorer, scoring in case.scorings():
        scores = scorer(scoring)
        wanted = {voter.name: set(voter.weights) for voter in scoring.voters}
        assert {voter: set(own) for voter, own in scores.items()} == wanted, (
            f"does not score, by method.{axis}, just the weights that each of the voters {list(wanted)} sees. "
            "Return {voter.name: {name: score for name in voter.weights} for voter in scoring.voters}."
        )
        for voter, name in [(one.name, name) for one in scoring.voters for name in one.weights]:
            score, shape = scores[voter][name], scoring.weights[name].shape
            assert score.shape == shape, (
                f"gives '{name}' scores of shape {tuple(score.shape)} instead of {tuple(shape)}, by "
                f"method.{axis}. Return one score a weight."
            )
            assert torch.isfinite(score).all(), (
                f"gives '{name}' scores that are not finite, by method.{axis}, for voter '{voter}'. Look for "
                "divisions by zero: removed weights are zero, and so may be the gradients of others."
            )
    return None


@contract(METHODS, "scorers")
def check_trace(case: Case) -> str | None:
    """Scoring leaves no trace in parameters, gradients, buffers, flags, hooks, generators and batches."""
    if not case.axes:
        return UNSCORED
    for axis, scorer, scoring in case.scorings():
        for training in (True, False):
            scoring.model.train(training)
            # A flag and gradients that differ from the others': what is put back has to be what was there.
            next(iter(scoring.model.children())).train(not training)
            for parameter in list(scoring.model.parameters())[::2]:
                parameter.grad = parameter.detach().clone()
            with strange_generators():
                before = state_of(scoring)
                scorer(scoring)
                after = state_of(scoring)
            changed = sorted(name for name in before | after if before.get(name) != after.get(name))
            assert not changed, f"changes {', '.join(changed[:4])} while scoring by method.{axis}. {TRACE}"
    return None


@contract(METHODS, "scorers")
def check_order(case: Case) -> str | None:
    """Tasks may be listed in any order: each voter's scores stay, but for the rounding of sums."""
    if not case.axes:
        return UNSCORED
    for axis, scorer, scoring in case.scorings(sparser=(1,)):
        _without_dropout(scoring.model)
        with strange_generators():
            there, back = scorer(scoring), scorer(_backwards(scoring))
        for voter, own in there.items():
            largest = max(float(score.abs().max()) for score in own.values())
            change = max(float((score - back[voter][name]).abs().max()) for name, score in own.items())
            assert change <= ROUNDING * largest, (
                f"gives other scores for voter '{voter}', by method.{axis}, where the tasks are listed backwards. "
                "Go by the names of voters and tasks, not by their places, as in "
                "scoring.generator(voter.name), and keep nothing from one voter to the next."
            )
    return None


def _backwards(scoring: Scoring) -> Scoring:
    """Return the same with voters, and the tasks in them, in the opposite order."""
    voters = [dataclasses.replace(voter, losses=_reversed(voter.losses)) for voter in reversed(scoring.voters)]
    return dataclasses.replace(
        scoring, voters=tuple(voters), losses=lambda *given: _reversed(scoring.losses(*given))
    )


def _reversed(named: Mapping[str, Any]) -> dict[str, Any]:
    return dict(reversed(list(named.items())))


def _without_dropout(model: nn.Module) -> None:
    """Turn dropout off: passes draw from it one after the other, in whatever order tasks are."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0


@contract(METHODS, "scorers")
def check_scale(case: Case) -> str | None:
    """Where that is claimed, losses may be in any unit: every voter ranks weights as before.

    A scorer claims it by `scale_free = True`, a method by a voter for each task, as its ranks are to make tasks
    comparable. A scorer with `scale_free = False` does not claim it for any method.
    """
    method = pruning(case.stages(case.folder))
    alone = method is not None and method.scope == PER_TASK
    claimed = {axis for axis in case.axes if getattr(getattr(method, axis), "scale_free", alone)}
    for axis, scorer, scoring in case.scorings([PER_TASK], sparser=(1,)):
        if axis not in claimed:
            continue
        _without_dropout(scoring.model)
        before, after = (_ranked(scorer(given)) for given in (scoring, _rescaled(scoring)))
        for voter, own in before.items():
            moved = max(float((rank - after[voter][name]).abs().max()) for name, rank in own.items())
            assert moved <= 0.01, (
                f"ranks weights otherwise for voter '{voter}', by method.{axis}, where the tasks' losses are in "
                "other units. Let a score be a product that has the loss in each of its terms, or declare "
                "`scale_free = False` in the scorer's class."
            )
    return None if claimed else "it does not claim this"


def _rescaled(scoring: Scoring) -> Scoring:
    """Return the same with every task's loss multiplied by a factor of its own, which rounds nothing."""

    def losses(*given: Any) -> dict[str, Tensor]:
        own = scoring.losses(*given)
        return {task: own[task] * 4.0 ** (1 + place) for place, task in enumerate(sorted(own))}

    return dataclasses.replace(scoring, losses=losses)


def _ranked(scores: Scores) -> dict[str, dict[str, Tensor]]:
    return {voter: ranks(own) for voter, own in scores.items()}


@contract(METHODS, "scorers")
def check_arbiters(case: Case) -> str | None:
    """With a voter for each task, and under every arbiter, masks have exactly the sparsity asked for."""
    stages = case.stages(case.folder)
    method = pruning(stages)
    if method is None:
        return UNPLANNED
    for name in ARBITERS:
        arbiter = case.registry.get("arbiters", name)
        crossed = dataclasses.replace(method, scope=PER_TASK, arbiter=arbiter, calibration=Exact())
        scoring = scoring_of(stages, PER_TASK)
        masks = make_masks(crossed, scoring, ASKED)
        for regrow in (0.3, 0.0) if crossed.grow else ():
            masks = regrow_masks(crossed, scoring, Update(1, ASKED, regrow), masks).masks
        kept = sum(int(mask.sum()) for mask in masks.values())
        goal = kept_count(sum(mask.numel() for mask in masks.values()), ASKED)
        assert kept == goal, f"keeps {kept} weights instead of {goal} under arbiter '{name}'. {RANDOM}"
    return None


@contract(METHODS, "arbiters")
def check_merging(case: Case) -> str | None:
    """Any number of tasks in any order: their ranks are left alone, and become one finite number a weight."""
    method = pruning(case.stages(case.folder))
    arbiter = method.arbiter if method else None
    if arbiter is None:
        return "it has no arbiter"
    for tasks, shape in itertools.product((2, 3, 5), ((7,), (3, 2, 2, 2))):
        drawn = torch.rand(tasks, *shape, generator=torch.Generator().manual_seed(tasks), dtype=torch.float64)
        given = drawn.clone()
        with strange_generators():
            merged, again, backwards = arbiter(given), arbiter(given), arbiter(drawn.flip(0))
        assert torch.equal(given, drawn), "changes the ranks that its arbiter is given. Work on a copy of them."
        assert merged.shape == drawn.shape[1:], (
            f"merges ranks of shape {tuple(drawn.shape)} to shape {tuple(merged.shape)} by its arbiter, instead "
            f"of {tuple(drawn.shape[1:])}. Merge along the first dimension, that of the tasks."
        )
        assert torch.isfinite(merged).all(), f"merges the ranks of {tasks} tasks to numbers that are not finite."
        assert torch.equal(merged, again), "merges the same ranks to others each time. Let no chance play a part."
        assert torch.allclose(merged, backwards, rtol=0, atol=1e-9), (
            f"merges the ranks of {tasks} tasks to others when they come in another order. Let no task be special."
        )
    return None


@contract(METHODS, "allocations")
def check_groups(case: Case) -> str | None:
    """The groups of an allocation have each weight once, and keep as many as there are to keep."""
    stages = case.stages(case.folder)
    method = pruning(stages)
    if method is None:
        return UNPLANNED
    shapes = {name: tuple(weight.shape) for name, weight in scoring_of(stages, PER_TASK).weights.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    for asked in SPARSITIES:
        kept = kept_count(sum(sizes.values()), asked)
        groups = method.allocation.groups(shapes, kept)
        names = sorted(name for group in groups for name in group.names)
        assert names == sorted(shapes), f"has weights in no group of its allocation, or in two: {names}."
        for group in groups:
            most = sum(sizes[name] for name in group.names)
            assert 0 <= group.kept <= most, f"keeps {group.kept} of the {most} weights of {list(group.names)}."
        total = sum(group.kept for group in groups)
        assert total == kept, (
            f"shares out {total} weights by its allocation instead of {kept}. Round so that the sum is exact: the "
            "largest remainders up."
        )
    return None
