"""Views of a comparison: some of its lines or columns, ranks, another order, or one line a method."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mtlprune_bench.errors import UsageError, unknown
from mtlprune_bench.results.comparisons import (
    METHOD,
    Cell,
    Column,
    Comparison,
    Line,
    comparisons,
    is_metric,
    order,
)
from mtlprune_bench.results.deltas import MEAN, Definition
from mtlprune_bench.store import COLUMNS, COSTS, FINISHED, SPARSITY

if TYPE_CHECKING:
    import pandas as pd

RANK = "mean_rank"
COST = "cost"
WHOLE_NETWORK = "all tasks"
"""The blocks of columns that are not a task's: what runs have cost, and what is of all tasks together."""

MEASURED = ("split", "task", "component", "metric", "value", "unit", "higher_is_better")
"""The columns of rows that say what is measured; failed runs have nothing in them."""


@dataclass(frozen=True)
class Filter:
    """Takes the rows of which the column `name` equals one of `patterns`, or does not; * stands for any text."""

    name: str
    patterns: tuple[str, ...]
    wanted: bool

    def takes(self, value: Any) -> bool:
        """Return whether a row with `value` in the column is taken."""
        text = f"{value:g}" if isinstance(value, float) else str(value)
        return any(text == each or fnmatch.fnmatchcase(text, each) for each in self.patterns) == self.wanted


def parse_filter(text: str) -> Filter:
    """Return the filter that `text`, NAME=VALUE[,VALUE] or NAME!=VALUE[,VALUE], says. Raises UsageError."""
    found = re.fullmatch(r"([^=!]*)(!?=)(.*)", text, re.DOTALL)
    if not found:
        raise UsageError(
            f"Cannot read the filter '{text}'. Write NAME=VALUE, as in method=snip,lth or sparsity!=0."
        )
    name, sign, values = found.groups()
    if name not in COLUMNS:
        raise unknown("column of rows", name, COLUMNS)
    return Filter(name, tuple(values.split(",")), sign == "=")


def taken(rows: pd.DataFrame, filters: Sequence[Filter]) -> pd.Series[bool]:
    """Return which of `rows` all `filters` take; a failed run is judged by what it is, not by what it measured."""
    import pandas as pd

    good = pd.Series(True, index=rows.index)
    for each in filters:
        values = {value: each.takes(value) for value in rows[each.name].dropna().unique()}
        fits = rows[each.name].map(values).fillna(not each.wanted).astype(bool)
        good &= fits | (rows["status"] != FINISHED) if each.name in MEASURED else fits
    return good


def of_lines(filters: Sequence[Filter]) -> tuple[Filter, ...]:
    """Return those of `filters` that take lines, as deltas may need the dense line that is not taken."""
    return tuple(each for each in filters if each.name in METHOD)


def chosen(comparison: Comparison, filters: Sequence[Filter], runs: frozenset[str]) -> Comparison:
    """Return `comparison` with the lines that all `filters` take, and with the failures of `runs`."""
    lines = tuple(
        line for line in comparison.lines if all(each.takes(getattr(line, each.name)) for each in filters)
    )
    failures = {run: reason for run, reason in comparison.failures.items() if run in runs}
    return replace(comparison, lines=lines, failures=failures)


def selected(
    rows: pd.DataFrame, filters: Sequence[str], definitions: Sequence[Definition] = (MEAN,)
) -> tuple[list[Comparison], pd.DataFrame]:
    """Return the comparisons of `rows`, ranked, with the lines that `filters` take, and the rows that they are of.

    The rows are of all lines, as deltas and pairs may need those that are not taken. Raises UsageError where
    nothing is left, and for filters that cannot be read.
    """
    wanted = [parse_filter(text) for text in filters]
    lines = of_lines(wanted)
    good = taken(rows, [each for each in wanted if each not in lines])
    runs = frozenset(rows["run"][good & taken(rows, lines)])
    found = [with_ranks(chosen(each, lines, runs)) for each in comparisons(rows[good], definitions)]
    found = [comparison for comparison in found if comparison.lines or comparison.failures]
    if not found:
        raise UsageError(
            f"No results are left by the filters {' '.join(filters)}. mtlbench table shows all there are."
        )
    return found, rows[good]


def competitors(comparison: Comparison) -> list[list[Line]]:
    """Return the lines that may be ranked, by sparsity, where there are two or more: measured, with it reached."""
    groups: dict[float, list[Line]] = {}
    for line in comparison.lines:
        if line.competes(line.sparsity):
            groups.setdefault(line.sparsity, []).append(line)
    return [lines for lines in groups.values() if len(lines) > 1]


def with_ranks(comparison: Comparison) -> Comparison:
    """Return `comparison` with a column more: a line's place among those of its sparsity, mean over all metrics.

    1 is the best; equal numbers share the mean of their places. A comparison in which no two lines have the same
    sparsity stays as it is.
    """
    column = Column(RANK, unit="place", higher_is_better=False)
    ranks: dict[int, Cell] = {}
    for lines in competitors(comparison):
        places: dict[int, list[float]] = {id(line): [] for line in lines}
        for metric in filter(is_metric, comparison.columns):
            values = {id(line): line.cells[metric].mean for line in lines if metric in line.cells}
            sign = -1 if metric.higher_is_better else 1
            # Means that differ by the order of a sum only are equal.
            known = {key: sign * float(f"{value:.12g}") for key, value in values.items() if not math.isnan(value)}
            for key, value in known.items():
                below = sum(other < value for other in known.values())
                equal = sum(other == value for other in known.values())
                places[key].append(below + (equal + 1) / 2)
        ranks |= {key: Cell(sum(own) / len(own), math.nan) for key, own in places.items() if own}
    if not ranks:
        return comparison
    lines_ = tuple(
        replace(line, cells={**line.cells, column: ranks[id(line)]}) if id(line) in ranks else line
        for line in comparison.lines
    )
    return replace(comparison, columns=(*comparison.columns, column), lines=lines_)


def block(column: Column) -> str:
    """Return what a column is about: a task, sparsity, cost, or all tasks."""
    if column.metric == SPARSITY:
        return SPARSITY
    return column.task or (COST if column.metric in COSTS else WHOLE_NETWORK)


def column_names(column: Column) -> tuple[str, ...]:
    """Return what a column may be called, the clearest first: segmentation.mean_iou, mean_iou, or its block."""
    of = column.component or column.task or column.split
    parts = [part for part in (of, column.metric, column.definition) if part]
    names = (".".join(parts), ".".join(parts[:2]), column.metric, block(column), column.definition)
    return tuple(dict.fromkeys(name for name in names if name))


def check_columns(comparisons: Sequence[Comparison], names: Sequence[str]) -> None:
    """Raise UsageError for the first of `names` that no column of `comparisons` is called."""
    known = {name for each in comparisons for column in each.columns for name in column_names(column)}
    for name in names:
        if name not in known:
            raise unknown("column", name, known)


def _called(name: str, comparison: Comparison) -> list[Column]:
    """Return the columns called `name`."""
    return [column for column in comparison.columns if name in column_names(column)]


def with_columns(comparison: Comparison, names: Sequence[str]) -> Comparison:
    """Return `comparison` with those of its columns that are called one of `names`, in that order."""
    columns = dict.fromkeys(column for name in names for column in _called(name, comparison))
    return replace(comparison, columns=tuple(columns))


def sorted_by(comparison: Comparison, name: str) -> Comparison:
    """Return `comparison` with its lines, within each sparsity, from the best to the worst in the column `name`.

    From low to high where no side is better; lines without a number are last; without groups. "method" sorts by
    method. Where there is no such column the lines stay. Raises UsageError where several are called so.
    """
    if name == "method":
        lines = sorted(comparison.lines, key=lambda line: (line.sparsity, line.method, line.settings))
        return replace(comparison, lines=tuple(lines), grouped=False)
    columns = _called(name, comparison)
    if len(columns) > 1:
        several = ", ".join(dict.fromkeys(column_names(column)[0] for column in columns))
        raise UsageError(f"'{name}' is the name of several columns: {several}. Sort by one of them.")
    if not columns:
        return comparison
    column = columns[0]

    def place(line: Line) -> tuple[float, bool, float]:
        value = line.cells[column].mean if column in line.cells else math.nan
        return (
            line.sparsity,
            math.isnan(value),
            0.0 if math.isnan(value) else -value if column.higher_is_better else value,
        )

    return replace(comparison, lines=tuple(sorted(comparison.lines, key=place)), grouped=False)


def pivoted(comparison: Comparison) -> Comparison:
    """Return `comparison` with one line a method, and with columns for each sparsity.

    Its sparsity then is nan. Where the number of seeds is not the same at all sparsities, a note says so.
    """
    groups: dict[tuple[object, ...], list[Line]] = {}
    for line in comparison.lines:
        own = line.runs if line.apart else ()
        key = (line.method, line.settings, line.finetune, line.pretrained, line.paradigm, line.source, own)
        groups.setdefault(key, []).append(line)
    sparsities = sorted({line.sparsity for line in comparison.lines})
    columns = tuple(replace(column, sparsity=each) for column in comparison.columns for each in sparsities)
    lines = [_merged(group) for group in groups.values()]
    if comparison.grouped:
        lines.sort(key=lambda line: order(line)[1:])
    used = {column for line in lines for column in line.cells}
    notes = [
        f"{group[0].method} has " + ", ".join(f"{len(line.seeds)} at {100 * line.sparsity:g} %" for line in group)
        for group in groups.values()
        if len({line.seeds for line in group}) > 1
    ]
    words = [f"The number of seeds is not the same at all sparsities: {'; '.join(notes)}."] if notes else []
    return replace(
        comparison,
        columns=tuple(column for column in columns if column in used),
        lines=tuple(lines),
        notes=(*comparison.notes, *words),
    )


def _merged(lines: Sequence[Line]) -> Line:
    """Return the lines of one method as one."""
    return replace(
        lines[0],
        sparsity=math.nan,
        seeds=tuple(sorted({seed for line in lines for seed in line.seeds})),
        runs=tuple(run for line in lines for run in line.runs),
        cells={
            replace(column, sparsity=line.sparsity): cell for line in lines for column, cell in line.cells.items()
        },
    )
