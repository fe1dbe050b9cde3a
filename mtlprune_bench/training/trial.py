"""Trials: how fast training is here with each setting of its arithmetic, and how fast samples are read.

Some settings round differently, so that a run cannot choose them by a clock: its numbers would depend on the
moment. A trial measures; what is chosen is then written down as a setting, and is part of the run.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtlprune_bench.recipe import Recipe
from mtlprune_bench.tasks import Batch, Objective
from mtlprune_bench.training.batches import Stream
from mtlprune_bench.training.state import State, make_optimizer
from mtlprune_bench.training.train import Training, Watch, make_step

WARM_UP = 2
"""Steps of each setting that are not timed: libraries choose kernels and take memory in them."""


@dataclass(frozen=True)
class Timing:
    """One way to train: the settings that differ from the recipe's, and the median seconds of a step."""

    changes: Mapping[str, Any]
    seconds: float


def variants(recipe: Recipe, compiled: bool = False) -> list[dict[str, Any]]:
    """Return the settings to compare, the recipe's own first, as changes to it; kernels made where `compiled`."""
    precisions = [recipe.precision, *({"bf16"} - {recipe.precision} if not recipe.double else ())]
    formats = dict.fromkeys([recipe.memory_format, "channels_last", "channels_first"])
    choices = itertools.product(precisions, formats, [False, True] if compiled else [recipe.compile])
    chosen = [{"precision": digits, "memory_format": order, "compile": made} for digits, order, made in choices]
    return [
        {name: value for name, value in one.items() if value != getattr(recipe, name)}
        for one in sorted(chosen, key=lambda one: one["compile"] != recipe.compile)
    ]


def time_steps(
    build: Callable[[], nn.Module],
    objective: Objective,
    recipe: Recipe,
    batch: Batch,
    changes: Sequence[Mapping[str, Any]],
    repeats: int,
) -> list[Timing]:
    """Return how long a training step takes with each of `changes` to `recipe`, which take turns `repeats` times.

    `build` returns a new network on the device of `batch`; there are as many at a time as `changes`.
    """
    steppers = [_stepper(build(), objective, dataclasses.replace(recipe, **own), batch) for own in changes]
    seconds: list[list[float]] = [[] for _ in changes]
    with torch.random.fork_rng(devices=[batch.images.device] if batch.images.is_cuda else []):
        for turn in range(WARM_UP + repeats):
            for stepper, own in zip(steppers, seconds, strict=True):
                taken = next(stepper)
                if turn >= WARM_UP:
                    own.append(taken)
    return [Timing(own, statistics.median(taken)) for own, taken in zip(changes, seconds, strict=True)]


def _stepper(model: nn.Module, objective: Objective, recipe: Recipe, batch: Batch) -> Iterator[float]:
    """Make a training step of `model` each time, and yield the seconds that it took."""
    training = Training(
        model=model,
        objective=objective,
        recipe=recipe,
        batches=lambda step: itertools.repeat(batch),
        select=None,
        folder=Path(),
        seed=0,
        checkpoint_seconds=math.inf,
        watch=Watch(lambda step, losses: None, lambda step, before, after: None),
    )
    scaler = torch.amp.GradScaler(batch.images.device.type, enabled=recipe.precision == "fp16")
    state = State(model, make_optimizer(model, recipe, None), {}, None, scaler)
    while True:
        yield _seconds(lambda: make_step(training, state, batch), batch.images.device)
        state.unseen.clear()


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """Return how long `action` takes, until the device is done with it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    since = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - since


def time_reading(stream: Stream, workers: Sequence[int], batches: int) -> dict[int, float]:
    """Return the seconds that a batch takes to read, by the number of `workers`, once they are at it."""
    found = {}
    for count in workers:
        reading = dataclasses.replace(stream, workers=count).start(0)
        next(reading)
        # What is read ahead before the clock starts must not count as fast.
        list(itertools.islice(reading, 2 * count))
        since = time.perf_counter()
        list(itertools.islice(reading, batches))
        found[count] = (time.perf_counter() - since) / batches
        del reading
    return found


def fewest_workers(reading: Mapping[int, float], step: float) -> int:
    """Return the fewest workers that read a batch in the `step` seconds of a training step, else the fastest.

    No worker at all has to read and train in turn, so that it is enough only where reading is a tenth of a step.
    """
    enough = [count for count, seconds in reading.items() if seconds <= (step if count else step / 10)]
    return min(enough) if enough else min(reading, key=lambda count: reading[count])
