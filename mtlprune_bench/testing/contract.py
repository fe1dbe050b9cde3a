"""The checks of the contract, each with what is wrong and what to do."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlprune_bench.host.registry import Registry
from mtlprune_bench.pruning.components import prunable
from mtlprune_bench.pruning.learned import LearnedMethod
from mtlprune_bench.pruning.masks import kept_count
from mtlprune_bench.pruning.method import PER_TASK, Exact
from mtlprune_bench.pruning.prune import make_masks
from mtlprune_bench.pruning.regrow import regrow_masks
from mtlprune_bench.pruning.schedules import Update
from mtlprune_bench.runs.pipeline import prepare_network
from mtlprune_bench.runs.stages import Stages
from mtlprune_bench.store import SPARSITY, WHOLE
from mtlprune_bench.tensors import NamedTensors
from mtlprune_bench.testing.case import (
    ASKED,
    CPU,
    Case,
    Outcome,
    Settings,
    counted,
    equal,
    pruning,
    scoring_of,
    seed_generators,
    state_of,
    strange_generators,
)
from mtlprune_bench.testing.tiny import register_tiny
from mtlprune_bench.training.networks import MULTITASK, SINGLE_TASK
from mtlprune_bench.training.state import weights_of

SPARSITIES = (0.0, 0.6, 0.93)
"""The sparsities that check_sparsity and check_plan ask for; the other checks ask for ASKED."""

ARBITERS = ("or", "majority", "strict-majority", "and", "at-least:2")

GENERATOR = "Draw from scoring.generator(purpose), never from a global generator, and keep nothing between calls."
PASSES = "Correct passes(voters) of its scorers: each call of the network and of torch.autograd.grad is a pass."
PLAN = "Correct plan(sparsity, recipe) of its schedule."
NAMED = "Its settings make the name of a run: let them be plain values, the same each time."
RANDOM = "Let its scores depend on the weights, on the batches, or on scoring.generator(purpose)."
TRACE = (
    "Score inside `with untouched(scoring.model):`, by torch.autograd.grad and not by backward(); put back the "
    "weights that a scorer changes; draw from scoring.generator(purpose)."
)


CHECKS: list[Callable[..., None]] = []
"""All checks, for `pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)`."""


def contract(check: Callable[[Case], None]) -> Callable[..., None]:
    """Make a check of a function of a Case, and list it in CHECKS."""

    def call(method: str, registry: Registry, folder: Path, settings: Settings | None = None) -> None:
        register_tiny(registry)
        try:
            check(Case(method, registry, folder, settings or {}))
        except AssertionError as error:
            raise AssertionError(f"Method '{method}' {error}") from error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise AssertionError(f"Method '{method}' does not get through {check.__name__}: {reason}") from error

    call.__name__ = call.__qualname__ = check.__name__
    call.__doc__ = check.__doc__
    CHECKS.append(call)
    return call


@contract
def check_sparsity(case: Case) -> None:
    """Masks, weights and rows have the sparsity asked for, to the weight; learned masks may state another."""
    for asked in SPARSITIES:
        done = case.shared(asked)
        method, experiment = done.stages.config.method, done.stages.experiment
        masks, weights, components = done.masks, done.weights, done.stages.components
        whole = prunable(experiment.outline(MULTITASK if experiment.small else None))
        sizes = {name: whole[name].numel() for name in components.users}
        kept = {name: int(masks[name].sum()) if masks else weights[name].numel() for name in sizes}
        learned = isinstance(method, LearnedMethod)
        exact = method.exact_finalize if isinstance(method, LearnedMethod) else method.calibration == Exact()
        left, total = sum(kept.values()), sum(sizes.values())
        goal = kept_count(total, asked) if method.sparse else total
        assert left == goal or not exact or (experiment.small and left < goal), (
            f"keeps {left} of {total} weights at sparsity {asked}, which leaves {goal}. Let the last update of "
            "its plan have the sparsity asked for."
        )
        for name, mask in masks.items():
            assert not weights[name][~mask].any(), (
                f"has weights in '{name}' that its masks remove and that are not zero, at sparsity {asked}. Leave "
                "weights and masks to the engine."
            )
            assert not learned or exact or weights[name][mask].all(), (
                f"has weights in '{name}' that its masks keep and that are zero, at sparsity {asked}. Let learned "
                "masks be true where a weight is not zero."
            )
        for component, names in {WHOLE: tuple(sizes), **components.by_name()}.items():
            measured = 1 - sum(kept[name] for name in names) / sum(sizes[name] for name in names)
            stated = done.value(SPARSITY, component)
            assert stated == measured, (
                f"states sparsity {stated} of '{component}' in its rows, and has {measured}. Was a file in the "
                "run's folder changed? Delete the folder."
            )


@contract
def check_seeds(case: Case) -> None:
    """The same seed gives the same masks, weights and rows, to the bit; another seed gives others."""
    first = case.shared()
    with case.store() as store:
        differing = first.difference(case.run(store))
    assert not differing, f"gives other {differing} when a run is repeated with its seed. {GENERATOR}"
    what = "weights" if all(bool(mask.all()) for mask in first.masks.values()) else "masks"
    same = equal(getattr(first, what), getattr(case.shared(seed=1), what))
    assert not same, f"gives the same {what} for two seeds. {RANDOM}"


@contract
def check_trace(case: Case) -> None:
    """Scoring leaves no trace in parameters, gradients, buffers, flags, hooks, generators and batches."""
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


@contract
def check_plan(case: Case) -> None:
    """Updates come in order, within training, ever sparser, and the last has the sparsity asked for."""
    for asked in SPARSITIES:
        stages = case.stages(case.folder, asked)
        if pruning(stages) is None:
            return
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


@contract
def check_scores(case: Case) -> None:
    """Every voter gives each weight that it sees a score, of the weight's shape, and finite."""
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


@contract
def check_observers(case: Case) -> None:
    """Observers that change all that they are told, and seed the global generators, change nothing of a run."""

    def meddle(event: str, *facts: dict[str, Any]) -> None:
        seed_generators(0)
        for fact in facts:
            for value in fact.values():
                if isinstance(value, Tensor):
                    value.fill_(False)
            fact.clear()

    alone = case.shared()
    with case.store() as store, case.watched(meddle):
        differing = alone.difference(case.run(store))
    assert not differing, f"gives other {differing} when an observer meddles. {GENERATOR}"


class Killed(BaseException):
    """Stops a run as the end of its process would: nothing handles it."""


@contract
def check_resume(case: Case) -> None:
    """A run that is killed again and again ends with the same masks, weights and rows."""

    def kill_after(events: int) -> Callable[..., None]:
        left = iter(range(events))

        def kill(event: str, *facts: object) -> None:
            if next(left, None) is None:
                raise Killed

        return kill

    whole, done, events = case.shared(), None, 2
    with case.store() as store:
        while done is None:
            with contextlib.suppress(Killed), case.watched(kill_after(events)):
                done = case.run(store, checkpoint_seconds=0)
            events += 5
        differing = whole.difference(done)
    assert not differing, f"gives other {differing} when it is killed and run again. {GENERATOR}"


@contract
def check_store(case: Case) -> None:
    """A run's files hold what it had in memory, and asking for it once more runs nothing."""
    with case.store() as store:
        stages = case.stages(store)
        masks, model = trained(stages)
        stored = Outcome(stages, [])
        same = equal(stored.masks, masks) and equal(stored.weights, weights_of(model))
    assert same, "has other masks or weights in its files than in memory. Leave trained networks alone."
    first, events = case.shared(), list[str]()
    with case.watched(lambda event, *facts: events.append(event)):
        again = case.shared()
    idle = not events and repr(again.rows) == repr(first.rows)
    assert idle, f"is run once more although the store has its rows. {NAMED}"


def trained(stages: Stages) -> tuple[NamedTensors, nn.Module]:
    """Return the final masks of a run, and its network, neither of them measured."""
    stages.folder.mkdir(parents=True)
    model = stages.experiment.build_model(CPU)
    return prepare_network(stages, model), model


@contract
def check_costs(case: Case) -> None:
    """Scorers make the passes that they declare, and a run the steps and passes that its rows state."""
    config = case.stages(case.folder).config
    # A network for each task alone: a pass goes through all of them, by one call of backward().
    networks = len(config.labels) if getattr(config.method, "network", MULTITASK) == SINGLE_TASK else 1
    for axis, scorer, scoring in case.scorings():
        voters = len(scoring.voters)
        with counted() as made:
            scorer(scoring)
        passes, declared = (made["forward"] // networks, made["backward"]), scorer.passes(voters)
        assert passes == declared, (
            f"declares {declared} forward and backward passes for {voters} voters, by method.{axis}, and makes "
            f"{passes}. {PASSES}"
        )
    whole, told = case.shared(), list[str]()
    with case.store() as store:
        stages = case.stages(store)
        _ = stages.components  # found by passes of their own, which are not among a run's costs
        with counted() as made, case.watched(lambda event, *facts: told.append(event)):
            trained(stages)
    made["backward"] *= networks
    taken = {"steps": told.count("step_finished"), **made}
    stated = {metric: int(whole.value(metric)) for metric in taken}
    assert stated == taken, f"states {stated} in its rows, and takes {taken}. {PASSES}"


@contract
def check_arbiters(case: Case) -> None:
    """With a voter for each task, and under every arbiter, masks have exactly the sparsity asked for."""
    stages = case.stages(case.folder)
    method = pruning(stages)
    if method is None:
        return
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
