"""Checks: what a run would fail at, found before it starts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from mtlprune_bench.errors import MtlbenchError, UsageError
from mtlprune_bench.pruning.arbiters import Majority
from mtlprune_bench.pruning.components import prunable
from mtlprune_bench.pruning.learned import FROM_TRAINED, LearnedMethod
from mtlprune_bench.pruning.masks import kept_count
from mtlprune_bench.pruning.method import PER_TASK, FixedRatio, Method
from mtlprune_bench.pruning.schedules import spans
from mtlprune_bench.runs.experiment import Experiment
from mtlprune_bench.training.checkpoint import read_weights
from mtlprune_bench.training.state import weights_of


def check(experiment: Experiment) -> list[str]:
    """Return warnings about `experiment`. Raises UsageError where it asks for what cannot be done."""
    method, shapes = experiment.config.method, _shapes(experiment)
    if isinstance(method, LearnedMethod):
        _check_checkpoint(experiment, method)
        return []
    _check_plan(experiment, method)
    _check_start(experiment, method)
    _check_updates(experiment, method)
    _check_control(experiment, method)
    _check_layers(experiment, method, shapes)
    return list(_warnings(experiment, method))


def _check_start(experiment: Experiment, method: Method) -> None:
    rewind = experiment.rewind
    for span in spans(experiment.plan, experiment.config.recipe.steps):
        if rewind >= span.steps:
            raise UsageError(
                f"Method '{method.name}' rewinds to step {rewind}, but training has {span.steps} steps."
            )
        missed = [update.step for update in span.later if update.step < rewind]
        if missed:
            raise UsageError(
                f"Method '{method.name}' rewinds to step {rewind}, but schedule '{method.schedule.name}' updates "
                f"masks at step {missed[0]} of the same training."
            )


def _check_plan(experiment: Experiment, method: Method) -> None:
    """Raise UsageError for a scorer or a plan, which came with a plugin, that no run can use."""
    if method.score is not None and not hasattr(method.score, "passes"):
        raise UsageError(
            f"Scorer '{method.score.name}' cannot say what it costs: give it passes(voters), which returns its "
            "numbers of forward and backward passes."
        )
    plan = experiment.plan
    trainings = spans(plan, experiment.config.recipe.steps)
    if sum(len(span.updates) for span in trainings) != len(plan) or any(span.steps < 1 for span in trainings):
        raise UsageError(f"Schedule '{method.schedule.name}' plans updates outside of training, or in no order.")
    if plan and plan[0].regrow is not None:
        raise UsageError(f"Schedule '{method.schedule.name}' regrows weights before it has pruned any.")


def _check_updates(experiment: Experiment, method: Method) -> None:
    for update in experiment.plan:
        if update.regrow is not None and method.grow is None:
            raise UsageError(
                f"Schedule '{method.schedule.name}' regrows weights, but method '{method.name}' has nothing to "
                "grow by; set method.grow, to gradient or noise for example."
            )
        if update.regrow is not None and isinstance(method.calibration, FixedRatio):
            raise UsageError(f"Method '{method.name}' regrows weights, which needs method.calibration=exact.")
    starts = [span.first for span in spans(experiment.plan, experiment.config.recipe.steps)]
    if any(starts) and getattr(method.score, "batches", 1) == 0:
        raise UsageError("The scorer has batches=0, the batch being trained on; before training there is none.")


def _check_control(experiment: Experiment, method: Method) -> None:
    if method.control == "none":
        return
    last = spans(experiment.plan, experiment.config.recipe.steps)[-1]
    if not experiment.plan or any(update.step > 0 for update in last.updates):
        raise UsageError(
            f"method.control={method.control} needs masks that are made before training and stay; those of "
            f"'{method.name}' do not."
        )
    if method.control == "redrawn" and method.start.train_from == "trained":
        raise UsageError(
            f"method.control=redrawn trains other initial weights under the same masks, but '{method.name}' "
            "goes on from trained ones."
        )


def _shapes(experiment: Experiment) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the prunable weights. Raises UsageError where the model's settings make no network."""
    name = experiment.config.model
    advice = f"Correct model.*; mtlbench ls {name} has its settings."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers without weights, which are refused below
            weights = prunable(experiment.outline())
    except MtlbenchError:
        raise
    except Exception as error:  # whatever the plugin of the model raises
        problem = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")  # torch's go on for pages
        raise UsageError(f"Model '{name}' cannot be built with these settings: {problem}. {advice}") from error
    for layer, weight in weights.items():
        if not weight.numel():
            raise UsageError(f"Model '{name}' has no weight in '{layer}' with these settings. {advice}")
    return {layer: tuple(weight.shape) for layer, weight in weights.items()}


def _check_layers(experiment: Experiment, method: Method, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UsageError where a layer would be left without any weight, so that nothing passes it."""
    if not experiment.plan:
        return
    total = sum(map(math.prod, shapes.values()))
    target = experiment.config.sparsity
    for group in method.allocation.groups(shapes, kept_count(total, target)):
        if group.kept == 0:
            raise UsageError(
                f"At sparsity {target} allocation '{method.allocation.name}' leaves layer '{group.names[0]}' "
                "without a weight; ask for less, or for another method.allocation."
            )


def _warnings(experiment: Experiment, method: Method) -> Iterator[str]:
    tasks = len(experiment.objective.tasks)
    if method.scope == PER_TASK and isinstance(method.arbiter, Majority) and tasks < 3:
        same = "or" if method.arbiter.tie == "keep" else "and"
        yield (
            f"Arbiter '{method.arbiter.name}' needs three tasks to differ from others (DiSparse, equation 19): "
            f"with {tasks} it is the same as '{same}'."
        )


def _check_checkpoint(experiment: Experiment, method: LearnedMethod) -> None:
    """Raise UsageError where the file to start from is of another network."""
    if method.checkpoint in ("", FROM_TRAINED):
        return
    given = {name: tensor.shape for name, tensor in read_weights(Path(method.checkpoint)).items()}
    if given != {name: tensor.shape for name, tensor in weights_of(experiment.outline()).items()}:
        raise UsageError(
            f"{method.checkpoint} does not hold weights of model '{experiment.config.model}'; name the "
            "weights.safetensors of a run with the same model and dataset."
        )
