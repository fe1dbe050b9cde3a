"""Results: rows of runs, grouped into comparisons that are fair, and averaged over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mtlprune_bench.paradigms import PARADIGMS
from mtlprune_bench.results import deltas
from mtlprune_bench.results.deltas import MEAN, Definition
from mtlprune_bench.store import CONFIG, FINISHED, LOSS, PARADIGM, PLAN, SPARSITY, WHOLE, Row, read_json, read_rows

if TYPE_CHECKING:
    import pandas as pd

SETTING = ("dataset", "data", "stand_in", "protocol", "model", "recipe")
"""Rows that differ in any of these are never in one table."""

METHOD = ("method", "settings", PARADIGM, "finetune", "pretrained", "sparsity")
"""Rows that differ in any of these are never in one line."""

COLUMN = ("metric", "task", "split", "component", "unit", "higher_is_better")

DELTA = "delta"

DIFFERENCE = "difference"
"""The source of lines that say by how much the line before the last exceeds the last."""

FAR = 0.005
"""How far a sparsity may be from the one asked for before lines may not be compared."""


@dataclass(frozen=True)
class Column:
    """One number of a comparison: what is measured, on which split, of which task or component.

    A delta has the name of its `definition`, one of deltas.DEFINITIONS. `sparsity` is that of the lines whose
    numbers stand here, where each sparsity has columns of its own.
    """

    metric: str
    task: str = ""
    split: str = ""
    component: str = ""
    unit: str = ""
    higher_is_better: bool | None = None
    definition: str = ""
    sparsity: float | None = None


@dataclass(frozen=True)
class Cell:
    """A mean over seeds and its sample standard deviation, nan for a single seed."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Line:
    """One method at one sparsity; `seeds` are those that its cells are means over, `runs` the runs they are from.

    `apart` says that the line is a single run, of which there is another with the same seed. `source` names where
    a line is from that was not measured here; "" for those that were.
    """

    method: str
    settings: str
    finetune: str
    pretrained: bool
    sparsity: float
    seeds: tuple[int, ...]
    cells: Mapping[Column, Cell]
    paradigm: str = ""
    runs: tuple[str, ...] = ()
    apart: bool = False
    source: str = ""

    @property
    def reached(self) -> dict[float, float]:
        """Return the sparsity of the whole network, in [0, 1], by the one asked for; {} where not measured."""
        whole = ((column.sparsity, cell) for column, cell in self.cells.items() if is_whole_sparsity(column))
        return {self.sparsity if asked is None else asked: cell.mean for asked, cell in whole}

    def competes(self, asked: float) -> bool:
        """Return whether the line was measured here, and has the sparsity `asked` for."""
        return not self.source and not abs(self.reached.get(asked, asked) - asked) > FAR


@dataclass(frozen=True)
class Comparison:
    """Lines that may be compared, what they have in common, and the runs that failed, with reasons.

    `notes` are further sentences for its readers. With `grouped` the lines stand in groups, by paradigm.
    """

    setting: Mapping[str, str | bool]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    failures: Mapping[str, str]
    notes: tuple[str, ...] = ()
    grouped: bool = True


def is_whole_sparsity(column: Column) -> bool:
    """Return whether a column has the sparsity of the whole network."""
    return column.metric == SPARSITY and column.component == WHOLE


def comparisons(rows: pd.DataFrame, definitions: Sequence[Definition] = (MEAN,)) -> list[Comparison]:
    """Return one comparison for each setting that occurs in `rows`, which has the columns of a store's rows.

    Each has a delta of each of `definitions`.
    """
    settings: dict[tuple[str | bool, ...], list[Row]] = {}
    for row in records(rows):
        settings.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    return [
        _comparison(dict(zip(SETTING, setting, strict=True)), settings[setting], definitions)
        for setting in sorted(settings, key=lambda setting: [str(value) for value in setting])
    ]


def records(rows: pd.DataFrame) -> Iterator[Row]:
    """Yield `rows` as dictionaries, in which None stands for what is not there."""
    if PARADIGM not in rows:
        rows = rows.assign(**{PARADIGM: ""})
    known = rows.astype(object).where(rows.notna(), None)
    names = [str(name) for name in known]
    for values in zip(*(known[name].tolist() for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def _comparison(
    setting: Mapping[str, str | bool], rows: Sequence[Row], wanted: Sequence[Definition]
) -> Comparison:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row["status"] == FINISHED:
            groups.setdefault(tuple(row[name] for name in METHOD), []).append(row)
    lines = sorted((line for group in groups.values() for line in _lines(group)), key=order)
    columns = dict.fromkeys(column for line in lines for column in line.cells if _in_table(column))
    dense = base_of(lines)
    if dense is not None:
        for definition in wanted:
            added = [{} if line is dense else delta_cells(line.cells, dense.cells, definition) for line in lines]
            columns |= dict.fromkeys(column for cells in added for column in cells)
            lines = [
                replace(line, cells={**line.cells, **cells}) if cells else line
                for line, cells in zip(lines, added, strict=True)
            ]
    failures = {row["run"]: f"{row['status']}: {row['reason']}" for row in rows if row["status"] != FINISHED}
    return Comparison(setting, tuple(columns), tuple(lines), failures)


def method_label(method: str, settings: str, finetune: str) -> str:
    """Return what tables call a method with these settings and this recipe of fine-tuning, if any."""
    parts = " ".join(part for part in (settings, finetune) if part)
    return f"{method} ({parts})" if parts else method


def order(line: Line) -> tuple[float, int, str, str]:
    """Return what lines are sorted by: sparsity, then paradigm, method and settings."""
    place = PARADIGMS.index(line.paradigm) if line.paradigm in PARADIGMS else -1
    return line.sparsity, place, line.method, line.settings


def base_of(lines: Sequence[Line]) -> Line | None:
    """Return the first line that may be the base of deltas: dense, trained once, from scratch, as registered."""
    return next(
        (line for line in lines if line.sparsity == 0 and not (line.settings or line.pretrained or line.apart)),
        None,
    )


def _lines(rows: Sequence[Row]) -> Iterator[Line]:
    """Yield the line of the runs of one method at one sparsity.

    Two runs of one seed differ in something that rows do not say, so that no mean is taken: each is a line.
    """
    runs: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        runs.setdefault((row["seed"], row["run"]), []).append(row)
    if len({seed for seed, _ in runs}) == len(runs):
        yield _line(rows)
    else:
        for key in sorted(runs):
            yield replace(_line(runs[key]), apart=True)


def _line(rows: Sequence[Row]) -> Line:
    values: dict[tuple[object, ...], list[float]] = {}
    for row in rows:
        measured = values.setdefault(tuple(row[name] for name in COLUMN), [])
        if row["value"] is not None:
            measured.append(row["value"])
    cells = {Column(*names): cell(measured) for names, measured in values.items()}  # type: ignore[arg-type]
    facts = {name: rows[0][name] for name in METHOD}
    seeds = sorted({row["seed"] for row in rows})
    return Line(**facts, seeds=tuple(seeds), cells=cells, runs=tuple(sorted({row["run"] for row in rows})))


def cell(values: Sequence[float]) -> Cell:
    """Return the mean of `values` and their sample standard deviation, nan where there are too few."""
    if not values:
        return Cell(math.nan, math.nan)
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return Cell(mean, math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan)


def _in_table(column: Column) -> bool:
    """Return whether a column is shown: all but the tasks' own losses, which the weighted total sums up."""
    return not (column.metric == LOSS and column.task)


def is_metric(column: Column) -> bool:
    """Return whether a column has a metric of a task, in which lines can be better or worse."""
    known = column.task and column.higher_is_better is not None
    return bool(known) and column.metric != LOSS and not column.definition


def changes(cells: Mapping[Column, Cell], dense: Mapping[Column, Cell]) -> dict[str, list[float | None]]:
    """Return the relative changes from `dense` by task, fractions, positive where better, as deltas take them.

    In the order of the metrics of `dense`; those whose dense value is 0 are left out, and None stands for those
    that `cells` lack.
    """
    found: dict[str, list[float | None]] = {}
    for column, base in dense.items():
        if is_metric(column) and base.mean:
            ours = cells.get(column)
            change = deltas.change(ours.mean, base.mean, bool(column.higher_is_better)) if ours else None
            found.setdefault(column.task, []).append(change)
    return found


def delta(cells: Mapping[Column, Cell], dense: Mapping[Column, Cell], definition: Definition = MEAN) -> float:
    """Return the relative improvement over `dense` by `definition`, a fraction, positive where better."""
    return deltas.whole(changes(cells, dense), definition)


def delta_cells(
    cells: Mapping[Column, Cell], dense: Mapping[Column, Cell], definition: Definition
) -> dict[Column, Cell]:
    """Return the deltas from `dense`: of each task where the definition has it so, then of all together."""
    found = changes(cells, dense)
    values = {
        **(deltas.by_task(found, definition) if definition.by_task else {}),
        "": delta(cells, dense, definition),
    }
    return {delta_column(definition, task): Cell(value, math.nan) for task, value in values.items()}


def delta_column(definition: Definition, task: str = "") -> Column:
    """Return the column of a delta of a task, or of all together."""
    return Column(DELTA, task=task, unit="fraction", higher_is_better=True, definition=definition.name)


def flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of JSON-like `value` with dotted names; "is" is what its parent is."""
    if isinstance(value, Mapping):
        for key, inner in sorted(value.items(), key=lambda item: item[0] != "is"):
            yield from flat(inner, name if key == "is" else f"{name}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from flat(item, f"{name}.{number}")
    elif name:
        yield name, value if isinstance(value, str) else json.dumps(value)


def run_tables(folder: Path) -> list[tuple[str, list[list[str]], list[str]]]:
    """Return titled tables, as (title, rows, headings), of all that is known of the run in `folder`."""
    facts = [[name, value] for name, value in flat(read_json(folder / CONFIG) or {})]
    sessions = read_json(folder / "environment.json") or []
    if sessions:
        last = sessions[-1]
        facts += [["started", last["started"]], ["device", last["device"]], ["commit", last["commit"] or ""]]
        facts += [["packages", " ".join(f"{name} {version}" for name, version in last["packages"].items())]]
    plan = read_json(folder / PLAN) or {"updates": []}
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
