"""Checks of whole runs: what is asked for is there, to the bit, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mtlprune_bench.pruning.components import prunable
from mtlprune_bench.pruning.learned import LearnedMethod
from mtlprune_bench.pruning.masks import kept_count
from mtlprune_bench.pruning.method import Exact
from mtlprune_bench.runs.pipeline import prepare_network
from mtlprune_bench.runs.stages import Stages
from mtlprune_bench.store import SPARSITY, WHOLE
from mtlprune_bench.tensors import NamedTensors
from mtlprune_bench.testing.case import (
    CPU,
    SPARSITIES,
    Case,
    Outcome,
    counted,
    equal,
    seed_generators,
)
from mtlprune_bench.testing.checks import METHODS, contract
from mtlprune_bench.testing.masking import GENERATOR, PASSES, RANDOM
from mtlprune_bench.training.networks import MULTITASK, SINGLE_TASK
from mtlprune_bench.training.state import weights_of

NAMED = "Its settings make the name of a run: let them be plain values, the same each time."


@contract(METHODS, "scorers", "arbiters", "schedules", "allocations")
def check_sparsity(case: Case) -> None:
    """Masks, weights and rows have the sparsity asked for, to the weight; learned ones may state another."""
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


@contract(METHODS, "scorers", "arbiters", "schedules", "allocations")
def check_seeds(case: Case) -> None:
    """The same seed gives the same masks, weights and rows, to the bit; another seed gives others."""
    first = case.shared()
    with case.store() as store:
        differing = first.difference(case.run(store))
    assert not differing, f"gives other {differing} when a run is repeated with its seed. {GENERATOR}"
    what = "weights" if all(bool(mask.all()) for mask in first.masks.values()) else "masks"
    same = equal(getattr(first, what), getattr(case.shared(seed=1), what))
    assert not same, f"gives the same {what} for two seeds. {RANDOM}"


@contract(METHODS)
def check_observers(case: Case) -> None:
    """Observers that change all that they are told, and seed global generators, change nothing of a run."""

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


@contract(METHODS, "scorers", "schedules")
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
            events += events // 2 + 3  # more and more, so that a long run is killed a dozen times and not hundreds
        differing = whole.difference(done)
    assert not differing, f"gives other {differing} when it is killed and run again. {GENERATOR}"


@contract(METHODS)
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


@contract(METHODS, "scorers", "schedules")
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
