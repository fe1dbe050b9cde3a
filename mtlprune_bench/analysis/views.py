"""Views of masks: densities, agreement and where to branch, as tables and as CSV."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from mtlprune_bench.analysis.overlap import (
    LEVEL,
    Branch,
    Overlap,
    added,
    branch_at,
    overlap,
    stays_below,
    watershed,
)
from mtlprune_bench.analysis.sources import SHARED, RunMasks, TaskMasks, groups
from mtlprune_bench.pruning.masks import sparsity
from mtlprune_bench.runs.catalogue import Table

MISSING = "–"
CSV_COLUMNS = ("run", "of", "component", "layer", "weights", "measure", "value")


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with two digits, without the sign."""
    return f"{100 * fraction:.2f}"


def layer_name(weight: str) -> str:
    """Return the name of the layer that a weight is of."""
    return weight.removesuffix(".weight")


def component_of(found: RunMasks | TaskMasks) -> dict[str, str]:
    """Return the component of each weight."""
    return {name: key for key, names in found.components.by_name().items() for name in names}


# Stored runs


def between(first: RunMasks, second: RunMasks) -> dict[str, Overlap]:
    """Return how far the masks of two runs agree, for each weight."""
    return {name: overlap([first.masks[name], second.masks[name]]) for name in first.components.users}


def run_tables(runs: Sequence[RunMasks]) -> list[Table]:
    """Return the densities of `runs` by component and by layer, and how far each two of them agree."""
    components = groups(runs[0].components)
    numbers = [str(number) for number in range(1, len(runs) + 1)]
    rows = [
        [number, run.label, *(percent(1 - sparsity(run.masks, names)) for names in components.values())]
        for number, run in zip(numbers, runs, strict=True)
    ]
    belongs = component_of(runs[0])
    layers = [
        [
            layer_name(name),
            belongs[name],
            f"{runs[0].masks[name].numel():,}",
            *(percent(1 - sparsity(run.masks, [name])) for run in runs),
        ]
        for name in belongs
    ]
    pairs = []
    for (first, one), (second, other) in itertools.combinations(zip(numbers, runs, strict=True), 2):
        parts = between(one, other)
        sums = [added(parts[name] for name in names) for names in components.values()]
        pairs.append(
            [f"{first} and {second}", *(f"{percent(part.iou)} ({percent(part.chance)})" for part in sums)]
        )
    tables: list[Table] = [
        ("density by component, %", rows, ["", "run", *components]),
        ("density by layer, %", layers, ["layer", "component", "weights", *numbers]),
    ]
    if pairs:
        title = "overlap: IoU, % (in brackets that of random masks as dense in each layer)"
        tables.append((title, pairs, ["runs", *components]))
    return tables


def run_records(runs: Sequence[RunMasks]) -> Iterator[list[Any]]:
    """Yield a record, in the order of CSV_COLUMNS, for each density and each overlap of `runs`."""
    for run in runs:
        for component, names in groups(run.components).items():
            weights = sum(run.masks[name].numel() for name in names)
            yield [run.run, "", component, "", weights, "density", 1 - sparsity(run.masks, names)]
        for name, component in component_of(run).items():
            mask = run.masks[name]
            yield [run.run, "", component, name, mask.numel(), "density", 1 - sparsity(run.masks, [name])]
    for one, other in itertools.combinations(runs, 2):
        parts = between(one, other)
        for component, names in groups(one.components).items():
            yield from _agreement(one.run, other.run, component, "", added(parts[name] for name in names))
        for name, component in component_of(one).items():
            yield from _agreement(one.run, other.run, component, name, parts[name])


def _agreement(run: str, other: str, component: str, layer: str, part: Overlap) -> Iterator[list[Any]]:
    yield [run, other, component, layer, part.weights, "iou", part.iou]
    yield [run, other, component, layer, part.weights, "iou by chance", part.chance]


# Tasks before training


def task_tables(found: TaskMasks) -> list[Table]:
    """Return what each task keeps, by component and by layer, how far tasks agree, and where one could branch."""
    tasks = found.components.tasks
    headings = [*(f"{task} %" for task in tasks), "IoU %", "by chance %"]
    components = [
        [
            component,
            *_cells(tasks, found.components.users[names[0]], added(found.overlaps[name] for name in names)),
        ]
        for component, names in found.components.by_name().items()
    ]
    numbers = {name: str(number) for number, name in enumerate(found.trunk.path)}
    belongs = component_of(found)
    layers = [
        [
            layer_name(name),
            numbers.get(name, ""),
            belongs[name],
            *_cells(tasks, found.components.users[name], found.overlaps[name]),
        ]
        for name in sorted(belongs, key=lambda name: found.trunk.depths.get(name, math.inf))
    ]
    tables: list[Table] = [
        (f"tasks' own masks before training: {found.label}", components, ["component", "weights", *headings]),
        ("by layer, in the order of an image", layers, ["layer", "number", "component", "weights", *headings]),
    ]
    if len(tasks) > 2:
        pairs = [
            [f"{one} and {other}", percent(part.iou), percent(part.chance)]
            for (one, other), part in found.pairs.items()
        ]
        tables.append(("two tasks, on all that they share", pairs, ["tasks", "IoU %", "by chance %"]))
    return [*tables, _branch_table(found, suggestions(found))]


def _cells(tasks: Sequence[str], users: Sequence[str], part: Overlap) -> list[str]:
    """Return the number of weights, each task's density of them, and how far those that use them agree."""
    own = dict(zip(users, part.densities, strict=True))
    densities = [percent(own[task]) if task in own else MISSING for task in tasks]
    agreement = [percent(part.iou), percent(part.chance)] if len(users) > 1 else [MISSING, MISSING]
    return [f"{part.weights:,}", *densities, *agreement]


def suggestions(found: TaskMasks) -> dict[str, Branch]:
    """Return the branches of the trunk that its layers suggest, by the rule that does."""
    ious = [found.overlaps[name].iou for name in found.trunk.path]
    rules = {
        "watershed: the largest fall that is never recovered": watershed(ious),
        f"IoU stays below {100 * LEVEL:g} %": stays_below(ious),
    }
    return {
        rule: branch_at(number, found.trunk, found.overlaps)
        for rule, number in rules.items()
        if number is not None
    }


def _branch_table(found: TaskMasks, branches: dict[str, Branch]) -> Table:
    whole = sum(part.weights for part in found.overlaps.values())
    kept = sum(part.by_any for part in found.overlaps.values())
    rows = [
        [
            rule,
            f"{branch.number} {layer_name(branch.name)}",
            MISSING if math.isnan(branch.before) else percent(branch.before),
            percent(branch.after),
            f"{branch.dense:,} (+{100 * branch.dense / whole:.1f} %)",
            f"{branch.kept:,} (+{100 * branch.kept / kept:.1f} %)",
        ]
        for rule, branch in branches.items()
    ]
    title = "where the trunk might branch into a copy for each task (a suggestion: nothing was trained)"
    return title, rows, ["rule", "layer", "IoU before %", "highest after %", "weights more", "kept weights more"]


def task_records(found: TaskMasks) -> Iterator[list[Any]]:
    """Yield a record, in the order of CSV_COLUMNS, for each density and IoU, and for each branch suggested."""
    for component, names in found.components.by_name().items():
        part = added(found.overlaps[name] for name in names)
        yield from _task_records(found, component, "", found.components.users[names[0]], part)
    for name, component in component_of(found).items():
        yield from _task_records(found, component, name, found.components.users[name], found.overlaps[name])
    for (one, other), part in found.pairs.items():
        yield from _agreement(found.run, f"{one} and {other}", "", "", part)
    for rule, branch in suggestions(found).items():
        facts = {"layer": branch.number, "weights more": branch.dense, "kept weights more": branch.kept}
        for measure, value in facts.items():
            yield [found.run, rule, SHARED, branch.name, "", f"branch: {measure}", value]


def _task_records(
    found: TaskMasks, component: str, layer: str, users: Sequence[str], part: Overlap
) -> Iterator[list[Any]]:
    for task, density in zip(users, part.densities, strict=True):
        yield [found.run, task, component, layer, part.weights, "density", density]
    if len(users) > 1:
        yield from _agreement(found.run, "all tasks", component, layer, part)


def comma_separated(records: Iterator[list[Any]]) -> str:
    """Return records as CSV with full numbers; densities and IoU are fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows([*record[:-1], repr(record[-1])] for record in records)
    return out.getvalue()
