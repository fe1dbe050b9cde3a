"""Trials of a run: tables of how fast it trains with each setting, as a person may choose them by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from mtlprune_bench.runs.config import Engine, override
from mtlprune_bench.runs.environment import resolve_device
from mtlprune_bench.runs.experiment import Experiment
from mtlprune_bench.training.batches import Stream
from mtlprune_bench.training.trial import Timing, fewest_workers, time_reading, time_steps, variants

Table = tuple[str, list[list[str]], list[str]]


def try_settings(experiment: Experiment, repeats: int, compiled: bool) -> list[Table]:
    """Return two tables, title, rows and headings: of steps, and of reading; of the first batch of the recipe.

    Raises UsageError where the device is not there, or where kernels are asked for and cannot be made.
    """
    engine = override(Engine(), experiment.request.settings.get("engine", {}), "engine")
    device, recipe = resolve_device(engine.device), experiment.config.recipe
    stream = Stream(experiment.opened.splits, experiment.objective, recipe, seed=experiment.config.seed)
    batch = stream[0].to(device, torch.float64 if recipe.double else None)
    changes = variants(recipe, compiled)
    steps = time_steps(
        lambda: experiment.build_model(device), experiment.objective, recipe, batch, changes, repeats
    )
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = [0, *(2**power for power in range(processors.bit_length()))]
    reading = time_reading(stream, workers, repeats)
    return [_steps_table(steps), _reading_table(reading, min(step.seconds for step in steps))]


def _steps_table(steps: list[Timing]) -> Table:
    rows = [
        [_settings(one.changes), f"{1 / one.seconds:.3g}", f"{steps[0].seconds / one.seconds:.2f}"]
        for one in steps
    ]
    return "Training steps", rows, ["settings", "steps/s", "times as fast"]


def _settings(changes: Mapping[str, Any]) -> str:
    words = [f"train.{name}={str(value).lower()}" for name, value in changes.items()]
    return " ".join(words) or "as they are"


def _reading_table(reading: dict[int, float], step: float) -> Table:
    chosen = fewest_workers(reading, step)
    rows = [
        [
            f"engine.workers={count}",
            f"{1 / seconds:.3g}",
            "fewest that keep up, else the fastest" if count == chosen else "",
        ]
        for count, seconds in reading.items()
    ]
    return "Reading", rows, ["settings", "batches/s", ""]
