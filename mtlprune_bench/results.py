"""Results: rows of runs, grouped into comparisons that are fair, and averaged over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtlprune_bench.evaluate import LOSS
from mtlprune_bench.store import FINISHED, read_json, read_rows

if TYPE_CHECKING:
    import pandas as pd

SETTING = ("dataset", "data", "stand_in", "protocol", "model", "recipe")
"""Rows that differ in any of these are never in one table."""

DELTA = "delta"


@dataclass(frozen=True)
class Column:
    """One number of a comparison: what is measured, on which split, of which task or component."""

    metric: str
    task: str = ""
    split: str = ""
    component: str = ""
    unit: str = ""
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Cell:
    """A mean over seeds and its sample standard deviation, nan for a single seed."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Line:
    """One method at one sparsity; `seeds` are those that its cells are means over."""

    method: str
    settings: str
    finetune: str
    pretrained: bool
    sparsity: float
    seeds: tuple[int, ...]
    cells: Mapping[Column, Cell]


@dataclass(frozen=True)
class Comparison:
    """Lines that may be compared, what they have in common, and the runs that failed, with reasons."""

    setting: Mapping[str, str | bool]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    failures: Mapping[str, str]


def comparisons(rows: pd.DataFrame) -> list[Comparison]:
    """Return one comparison for each setting that occurs in `rows`, which has the columns of a store's rows."""
    return [
        _comparison({name: group[name].iloc[0] for name in SETTING}, group)
        for _, group in rows.groupby(list(SETTING), sort=True, dropna=False)
    ]


def _comparison(setting: Mapping[str, str | bool], rows: pd.DataFrame) -> Comparison:
    finished = rows[rows["status"] == FINISHED]
    failed = rows[rows["status"] != FINISHED]
    keys = ["method", "settings", "finetune", "pretrained", "sparsity"]
    lines = [_line(group) for _, group in finished.groupby(keys, sort=False, dropna=False)]
    lines.sort(key=lambda line: (line.sparsity, line.method, line.settings))
    columns = list(dict.fromkeys(column for line in lines for column in line.cells if _in_table(column)))
    delta = Column(DELTA, unit="fraction", higher_is_better=True)
    lines = [_with_delta(line, lines, delta) for line in lines]
    if any(delta in line.cells for line in lines):
        columns.append(delta)
    failures = dict(zip(failed["run"], failed["reason"], strict=True))
    return Comparison(setting, tuple(columns), tuple(lines), failures)


def _line(rows: pd.DataFrame) -> Line:
    identity = ["metric", "task", "split", "component", "unit", "higher_is_better"]
    cells = {}
    for _, group in rows.groupby(identity, sort=False, dropna=False):
        first, values = group.iloc[0], group["value"].astype(float)
        names = {name: first[name] for name in identity[:-1]}
        known = group["higher_is_better"].notna().iloc[0]
        column = Column(**names, higher_is_better=bool(first["higher_is_better"]) if known else None)
        cells[column] = Cell(float(values.mean()), float(values.std()))
    first = rows.iloc[0]
    return Line(
        method=first["method"],
        settings=first["settings"],
        finetune=first["finetune"],
        pretrained=bool(first["pretrained"]),
        sparsity=float(first["sparsity"]),
        seeds=tuple(sorted(int(seed) for seed in rows["seed"].unique())),
        cells=cells,
    )


def _in_table(column: Column) -> bool:
    """Return whether a column is shown: all but the tasks' own losses, which the weighted total sums up."""
    return not (column.metric == LOSS and column.task)


def _with_delta(line: Line, lines: Sequence[Line], column: Column) -> Line:
    """Return `line` with its delta against the dense line, if there is one and it is another."""
    plain = (other for other in lines if other.sparsity == 0 and not (other.settings or other.pretrained))
    dense = next(plain, None)
    if dense is None or dense is line:
        return line
    change = delta(line.cells, dense.cells)
    return Line(**{**vars(line), "cells": {**line.cells, column: Cell(change, math.nan)}})


def delta(cells: Mapping[Column, Cell], dense: Mapping[Column, Cell]) -> float:
    """Return the relative improvement over `dense`: the mean over a task's metrics, then over tasks.

    A fraction, positive where better; losses and metrics whose dense value is 0 are left out.
    """
    by_task: dict[str, list[float]] = {}
    for column, cell in cells.items():
        base = dense.get(column)
        counted = column.task and column.metric != LOSS and column.higher_is_better is not None
        if counted and base is not None and base.mean:
            change = (cell.mean - base.mean) / abs(base.mean)
            by_task.setdefault(column.task, []).append(change if column.higher_is_better else -change)
    return _mean(_mean(changes) for changes in by_task.values())


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known) if known else math.nan


def _flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of JSON-like `value` with dotted names; "is" is what its parent is."""
    if isinstance(value, Mapping):
        for key, inner in sorted(value.items(), key=lambda item: item[0] != "is"):
            yield from _flat(inner, name if key == "is" else f"{name}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{name}.{number}")
    elif name:
        yield name, value if isinstance(value, str) else json.dumps(value)


def run_tables(folder: Path) -> list[tuple[str, list[list[str]], list[str]]]:
    """Return titled tables, as (title, rows, headings), of all that is known of the run in `folder`."""
    facts = [[name, value] for name, value in _flat(read_json(folder / "config.json") or {})]
    sessions = read_json(folder / "environment.json") or []
    if sessions:
        last = sessions[-1]
        facts += [["started", last["started"]], ["device", last["device"]], ["commit", last["commit"] or ""]]
        facts += [["packages", " ".join(f"{name} {version}" for name, version in last["packages"].items())]]
    plan = read_json(folder / "plan.json") or {"updates": []}
    updates = [[str(update["step"]), f"{update['sparsity']:g}"] for update in plan["updates"]]
    files = [[path.name, f"{path.stat().st_size / 1e6:.2f} MB"] for path in sorted(folder.glob("[!.]*"))]
    rows = read_rows(folder) or []
    numbers = [
        [row["metric"], row["task"] or row["component"], row["split"], f"{row['value']:.6g}", row["unit"]]
        for row in rows
        if row["status"] == FINISHED
    ]
    status = rows[0]["status"] if rows else "not finished"
    reason = f": {rows[0]['reason']}" if rows and rows[0]["reason"] else ""
    return [
        (f"{folder.name} {status}{reason}", facts, ["fact", "value"]),
        ("updates of the masks", updates, ["before step", "sparsity"]),
        (f"files in {folder}", files, ["file", "size"]),
        ("numbers", numbers, ["metric", "of", "split", "value", "unit"]),
    ]
