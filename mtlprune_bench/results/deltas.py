"""Deltas: how much better than dense a network is, over all metrics, by each definition in print."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Changes = Mapping[str, Sequence[float | None]]
"""By task the relative changes of its metrics, as fractions, positive where better; None where not measured."""


@dataclass(frozen=True)
class Definition:
    """How the changes of a task's metrics become one number; the whole is the mean over tasks.

    `words` say it; with `by_task` the paper prints the tasks' numbers beside the whole.
    """

    name: str
    words: str
    of_task: Callable[[Sequence[float | None]], float]
    by_task: bool


def mean(values: Sequence[float | None]) -> float:
    """Return the mean of those `values` that are there; nan of none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def total(values: Sequence[float | None]) -> float:
    """Return the sum of `values`; nan where one is missing, as without it the sum is another quantity."""
    return math.nan if None in values else sum(value for value in values if value is not None)


def first(values: Sequence[float | None]) -> float:
    """Return the first of `values`; nan where it is missing."""
    return math.nan if values[0] is None else values[0]


MEAN = Definition("mean", "mean over a task's metrics, then over tasks", mean, by_task=False)
ADAPMTL = Definition("adapmtl", "sum over a task's metrics, then mean over tasks", total, by_task=True)
"""AdapMTL, table 2 (https://arxiv.org/abs/2408.03913)."""
ONE_METRIC = Definition("one-metric", "the first metric of each task, then mean over tasks", first, by_task=True)
"""Maninis et al., "Attentive single-tasking of multiple tasks", equation 3 (https://arxiv.org/abs/1904.08918)."""

DEFINITIONS = {definition.name: definition for definition in (MEAN, ADAPMTL, ONE_METRIC)}


def change(value: float, base: float, higher_is_better: bool) -> float:
    """Return the relative change from `base`, which is not 0, as a fraction, positive where better."""
    relative = (value - base) / abs(base)
    return relative if higher_is_better else -relative


def by_task(changes: Changes, definition: Definition) -> dict[str, float]:
    """Return the delta of each task, a fraction; tasks without any change that counts are left out."""
    return {
        task: definition.of_task(values) for task, values in changes.items() if any(v is not None for v in values)
    }


def whole(changes: Changes, definition: Definition) -> float:
    """Return the delta of all tasks together, a fraction; nan where there is none."""
    return mean(list(by_task(changes, definition).values()))
