"""What tables say: captions, headings, labels, footnotes, rounded numbers, and which of them are best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mtlprune_bench.results.comparisons import (
    DELTA,
    FAR,
    SETTING,
    Cell,
    Column,
    Comparison,
    Line,
    is_metric,
    method_label,
)
from mtlprune_bench.results.deltas import DEFINITIONS, MEAN, ONE_METRIC, Definition
from mtlprune_bench.results.views import RANK
from mtlprune_bench.store import COSTS, SPARSITY, WHOLE

ARROWS = {True: "↑", False: "↓", None: ""}
MISSING = "–"

DIGITS = {"fraction": 2, "degree": 2, "place": 2, **dict.fromkeys(COSTS.values(), 0)}
"""Digits behind the point, by unit; 4 for others."""

BEST, SECOND = 1, 2


def caption(comparison: Comparison) -> str:
    """Return what all lines of a comparison have in common, in words."""
    setting = comparison.setting
    data = f"{setting['dataset']}: {setting['data']}"
    if setting["stand_in"]:
        data = f"{setting['dataset']} STAND-IN, not the real data: {setting['data']}"
    return f"{data}; model {setting['model']}; protocol {setting['protocol']}; {setting['recipe']}"


def footnotes(comparison: Comparison) -> list[str]:
    """Return what a reader of the numbers has to know: how they are averaged, and which runs failed."""
    notes = []
    if any(len(line.seeds) > 1 for line in comparison.lines):
        notes.append("Mean ± sample standard deviation over seeds.")
    notes += dict.fromkeys(_delta_note(comparison, column) for column in comparison.columns if column.definition)
    if any(column.metric == RANK for column in comparison.columns):
        notes.append(f"{RANK}: place among the lines of a sparsity, 1 the best, mean over the tasks' metrics.")
    for line in comparison.lines:
        for asked, reached in line.reached.items():
            if not line.source and abs(reached - asked) > FAR:
                notes.append(
                    f"{line.method} was asked for a sparsity of {100 * asked:g} % and reached "
                    f"{100 * reached:.2f} %: not to be compared with others at that sparsity."
                )
        notes += [
            f"{label(line)} left no weight of {column.component} at sparsity {100 * line.sparsity:g} %."
            for column, cell in line.cells.items()
            if column.metric == SPARSITY and column.component != WHOLE and cell.mean == 1 and not line.source
        ]
    if any(line.apart for line in comparison.lines):
        notes.append(
            "Lines with a run's name: several runs of one seed differ in what rows do not say, so that they are "
            "not averaged. mtlbench show RUN has all settings."
        )
    notes += comparison.notes
    notes += [f"{run} {words}" for run, words in comparison.failures.items()]
    return notes


def _delta_note(comparison: Comparison, column: Column) -> str:
    definition = DEFINITIONS[column.definition]
    name = DELTA if definition is MEAN else f"{DELTA} ({definition.name})"
    return f"{name}: relative improvement over dense, {definition.words}{_counted(comparison, definition)}."


def _counted(comparison: Comparison, definition: Definition) -> str:
    """Return which metrics a delta is of, where that depends on how many there are, or which is first."""
    if definition is MEAN:
        return ""
    metrics: dict[str, dict[str, None]] = {}
    for line in comparison.lines:
        for column in filter(is_metric, line.cells):
            metrics.setdefault(column.task, {})[column.metric] = None
    taken = {task: list(names)[:1] if definition is ONE_METRIC else list(names) for task, names in metrics.items()}
    return " (" + "; ".join(f"{task}: {', '.join(names)}" for task, names in taken.items()) + ")"


def label(line: Line) -> str:
    """Return how a line is called: its source, or its method with settings and recipe of fine-tuning, if any."""
    words = method_label(line.method, line.settings, line.finetune)
    return line.source or (f"{words} [{line.runs[0]}]" if line.apart else words)


def names(line: Line) -> tuple[str, ...]:
    """Return the first cells of a line: method, sparsity asked for, whether pretrained, number of seeds."""
    asked = MISSING if math.isnan(line.sparsity) else f"{100 * line.sparsity:g}"
    if line.source:
        return label(line), asked, MISSING, MISSING
    return label(line), asked, "yes" if line.pretrained else "no", str(len(line.seeds))


def header(column: Column, separator: str = " ") -> str:
    """Return a column's heading: what it is of, its name, the unit and an arrow to the better side.

    Below each other (`separator` is a line break) the task is left out: the block's title says it.
    """
    of = column.component if column.metric == SPARSITY else column.task or column.split
    of = "" if column.task and separator == "\n" else of
    unit = "%" if column.unit == "fraction" else column.unit
    metric = f"{column.metric} ({column.definition})" if column.definition else column.metric
    name = " ".join(part for part in (metric, ARROWS[column.higher_is_better]) if part)
    at = "" if column.sparsity is None else f"at {100 * column.sparsity:g} %"
    return separator.join(part for part in (of, name, unit, at) if part)


def number(cell: Cell | None, unit: str, signed: bool = False) -> str:
    """Return a cell as text: fractions as percentages, "mean ± deviation" where there are several seeds.

    With `signed` a number that is not negative has a plus sign.
    """
    if cell is None or math.isnan(cell.mean):
        return MISSING
    scale = 100 if unit == "fraction" else 1
    digits = DIGITS.get(unit, 4)
    mean = f"{scale * cell.mean:{'+' if signed else ''}.{digits}f}"
    if math.isnan(cell.deviation) or (digits == 0 and cell.deviation == 0):
        return mean
    return f"{mean} ± {scale * cell.deviation:.{digits}f}"


def places(comparison: Comparison) -> list[dict[Column, int]]:
    """Return for each line the columns in which it is BEST or SECOND of those of a sparsity, as rounded in print.

    Costs and sparsities have neither, nor have columns in which fewer than two numbers differ. Lines that missed
    the sparsity asked for take no part.
    """
    marks: list[dict[Column, int]] = [{} for _ in comparison.lines]
    for column in comparison.columns:
        groups: dict[float, dict[int, float]] = {}
        if column.higher_is_better is None or column.metric in COSTS:
            continue
        for index, line in enumerate(comparison.lines):
            asked = line.sparsity if column.sparsity is None else column.sparsity
            if line.competes(asked) and (text := number(_mean_of(line, column), column.unit)) != MISSING:
                groups.setdefault(asked, {})[index] = float(text)
        for values in groups.values():
            ordered = sorted(set(values.values()), reverse=column.higher_is_better)[:SECOND]
            for index, value in values.items():
                if len(ordered) > 1 and value in ordered:
                    marks[index][column] = ordered.index(value) + 1
    return marks


def _mean_of(line: Line, column: Column) -> Cell:
    mean = line.cells[column].mean if column in line.cells else math.nan
    return Cell(mean, math.nan)


def groups(comparison: Comparison) -> list[str]:
    """Return for each line the title of the group that begins with it, "" where none does."""
    titles = [line.paradigm if comparison.grouped else "" for line in comparison.lines]
    keys = [(line.sparsity if not math.isnan(line.sparsity) else None, line.paradigm) for line in comparison.lines]
    return [
        title if key != before else "" for title, key, before in zip(titles, keys, [None, *keys], strict=False)
    ]


def differing(comparisons: Sequence[Comparison]) -> str:
    """Return in words in what several comparisons differ, which is why they are not one; "" for a single one."""
    if len(comparisons) < 2:
        return ""
    values = {name: list(dict.fromkeys(str(each.setting[name]) for each in comparisons)) for name in SETTING}
    words = [f"{name.replace('_', '-')} ({'; '.join(given)})" for name, given in values.items() if len(given) > 1]
    return f"{len(comparisons)} tables, never averaged together, as they differ in {', '.join(words)}."
