"""Traces: the losses and the sparsity of runs, step after step, with the runs of several seeds as one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlprune_bench.data.formats import Array
from mtlprune_bench.errors import UsageError
from mtlprune_bench.figures.style import (
    COLOURS,
    DASHES,
    band,
    is_dense,
    legend,
    looks,
    names_of,
    panels,
    setting_of,
)
from mtlprune_bench.results.captions import label
from mtlprune_bench.results.comparisons import Comparison, Line
from mtlprune_bench.runs.stages import SPARSITIES
from mtlprune_bench.store import CONFIG, PLAN, WHOLE, Store, read_history, read_json
from mtlprune_bench.training.train import HISTORY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOTAL = "total, weighted"
WINDOW = 20
"""The part of all steps that one point of a curve is a mean over is one of so many."""
MARKS = 8
"""About how many markers a curve has, by which it is told apart in grey."""


@dataclass(frozen=True)
class Trace:
    """The numbers of one run by name [n], and the step of each [n], counted through all its trainings.

    `starts` are the places at which trainings begin.
    """

    steps: Array
    values: Mapping[str, Array]
    starts: tuple[int, ...] = (0,)


def trainings(folder: Path, store: Store) -> Iterator[Path]:
    """Yield the folders of the trainings that the run in `folder` consists of, in order, its dense one first."""
    plan = read_json(folder / PLAN) or {}
    stages = plan.get("stages") or [plan["dense_stage"]] if plan.get("stages") or plan.get("dense_stage") else []
    # A training that stops where weights are rewound to repeats the first steps of the dense one.
    shared = [store.stage_folder(name) for name in stages if "-step-" not in name]
    rounds = sorted(folder.glob("round-*"), key=lambda path: int(path.name.removeprefix("round-")))
    yield from (path for path in (*shared, *rounds, folder) if (path / HISTORY).exists())


def read_trace(folder: Path, store: Store, file: str, key: str) -> Trace | None:
    """Return what the lines of `file` in each training of a run hold under `key`; None where there is nothing."""
    steps: list[int] = []
    values: dict[str, list[float]] = {}
    start, starts = 0, list[int]()
    for training in trainings(folder, store):
        last = -1
        for entry in read_history(training / HISTORY):
            last = entry["step"]
        starts.append(len(steps))
        for entry in read_history(training / file):
            steps.append(start + entry["step"])
            for name, value in entry[key].items():
                values.setdefault(name, [float("nan")] * (len(steps) - 1)).append(value)
        start += last + 1
    if not steps:
        return None
    return Trace(np.array(steps), {name: np.array(own) for name, own in values.items()}, tuple(starts))


def losses_of(folder: Path, store: Store) -> Trace | None:
    """Return the training losses of a run, each task's and their sum by the weights of the dataset, smoothed."""
    trace = read_trace(folder, store, HISTORY, "losses")
    weights = (read_json(folder / CONFIG) or {}).get("loss_weights", {})
    if trace is None or set(trace.values) - set(weights):
        return trace
    total = sum(weights[task] * loss for task, loss in trace.values.items())
    window = max(1, len(trace.steps) // WINDOW)
    values = {TOTAL: np.asarray(total), **trace.values}
    return Trace(trace.steps, {name: _smoothed(value, window, trace.starts) for name, value in values.items()})


def _smoothed(values: Array, window: int, starts: Sequence[int]) -> Array:
    """Return the running means of each training apart, as the first steps of one do not follow another's last."""
    return np.concatenate([smoothed(part, window) for part in np.split(values, starts) if len(part)])


def smoothed(values: Array, window: int) -> Array:
    """Return the means of `values` [n] over the `window` last ones; of as many as there are at the beginning."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    means: Array = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def curves_figure(comparison: Comparison, store: Store) -> Figure:
    """Return the training losses of runs by step, a panel for each task and for their sum.

    Of several seeds the mean, and a band from the lowest to the highest. Raises UsageError where there is none.
    """
    from matplotlib.ticker import LogLocator

    found = _found(comparison, store, losses_of)
    names = list(dict.fromkeys(name for _, traces in found for trace in traces for name in trace.values))
    figure, axes = panels(len(names), *setting_of(comparison))
    called, drawings = names_of(comparison.lines), looks(comparison.lines)
    for line, traces in found:
        asked = "" if is_dense(line) else f" at {100 * line.sparsity:g} %"
        for axis, name in zip(axes, names, strict=True):
            steps, lows, means, highs = _spread(traces, name)
            drawn = drawings[label(line)] | {"markevery": max(1, len(steps) // MARKS), "markersize": 4}
            axis.plot(steps, means, label=called[label(line)] + asked, **drawn)
            band(axis, steps, lows, highs, drawn["color"])
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("optimizer step, all trainings of a run")
        axis.set_ylabel("training loss ↓")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    legend(figure, axes)
    return figure


def sparsities_of(folder: Path, store: Store) -> Trace | None:
    """Return the sparsity of each component of a run, in percent, where its masks change while it trains."""
    trace = read_trace(folder, store, SPARSITIES, "sparsity")
    return trace and Trace(trace.steps, {name: 100 * value for name, value in trace.values.items()})


def growth_figure(comparison: Comparison, store: Store) -> Figure:
    """Return the sparsity of each component by step, a panel for each method and sparsity whose masks change.

    Of several seeds the mean, and a band from the lowest to the highest. Raises UsageError where there is none.
    """
    found = _found(comparison, store, sparsities_of)
    called = names_of(comparison.lines)
    figure, axes = panels(len(found), *setting_of(comparison))
    for axis, (line, traces) in zip(axes, found, strict=True):
        for number, name in enumerate(traces[0].values):
            steps, lows, means, highs = _spread(traces, name)
            colour = "black" if name == WHOLE else COLOURS[number % len(COLOURS)]
            axis.plot(steps, means, color=colour, linestyle=DASHES[number % len(DASHES)], label=name)
            band(axis, steps, lows, highs, colour)
        axis.set_title(f"{called[label(line)]} at {100 * line.sparsity:g} %", fontsize=8, wrap=True)
        axis.set_xlabel("optimizer step, all trainings of a run")
        axis.set_ylabel("sparsity (%)")
    legend(figure, axes)
    return figure


def _found(comparison: Comparison, store: Store, read: Any) -> list[tuple[Line, Sequence[Trace]]]:
    """Return the lines of which there is a trace, with that of each run. Raises UsageError for none."""
    pairs = [(line, [read(store.run_folder(run), store) for run in line.runs]) for line in comparison.lines]
    found = [(line, [trace for trace in traces if trace]) for line, traces in pairs]
    if not any(traces for _, traces in found):
        raise UsageError(
            f"No run in {store.folder} that is asked for has kept what it was like while it trained: of sparsity, "
            f"only those do whose masks change ({SPARSITIES}), and none that an earlier version made."
        )
    return [(line, traces) for line, traces in found if traces]


def _spread(traces: Sequence[Trace], name: str) -> tuple[Array, Array, Array, Array]:
    """Return the steps that all `traces` have, and the lowest, mean and highest value of `name` at each."""
    steps = set.intersection(*(set(trace.steps.tolist()) for trace in traces))
    rows = [trace.values[name][np.isin(trace.steps, list(steps))] for trace in traces]
    values = np.stack(rows)
    return np.array(sorted(steps)), values.min(axis=0), values.mean(axis=0), values.max(axis=0)
