"""Published numbers: the tables of the papers, as printed, and what may be set beside them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from mtlprune_bench.errors import DataError
from mtlprune_bench.results.comparisons import DIFFERENCE, Cell, Column, Comparison, Line, is_metric, order
from mtlprune_bench.results.deltas import ADAPMTL
from mtlprune_bench.results.views import Filter

PROTOCOL = "disparse"
"""The protocol under which the papers measure."""

FACTS = ("paper", "address", "table", "dataset", "model", "recipe", "name", "method", "settings", "paradigm")
SPARSITY_PERCENT = "sparsity %"
DOUBT = "doubt"


@dataclass(frozen=True)
class Printed:
    """One row of a paper's table.

    `name` is what the paper calls a method; `dataset`, `model`, `method` and `settings` are what it is here, and
    `recipe` is the paper's. `texts` are the numbers as printed, by what they are of and their unit, as in
    `segmentation.mean_iou %`. `doubt` is what speaks against taking the row at its word, "" for nothing.
    """

    paper: str
    address: str
    table: str
    dataset: str
    model: str
    recipe: str
    name: str
    method: str
    settings: str
    paradigm: str
    sparsity: float
    texts: Mapping[str, str]
    doubt: str

    @property
    def source(self) -> str:
        """Return where it is printed, and under which name."""
        return f"{self.name} in {self.paper}, {self.table}"

    def value(self, column: Column) -> float | None:
        """Return the number of a column of ours, in its unit; None where the paper has none."""
        if column.split not in ("", "test") or column.definition not in ("", ADAPMTL.name):
            return None
        for heading, text in self.texts.items():
            name, _, unit = heading.partition(" ")
            if name == f"{column.component or column.task}.{column.metric}".lstrip("."):
                return float(text) / 100 if unit == "%" else float(text)
        return None


@cache
def printed() -> tuple[Printed, ...]:
    """Return all rows of the papers' tables, paper by paper. Raises DataError where a table is damaged."""
    folder = files("mtlprune_bench.results") / "papers"
    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    return tuple(row for path in paths for row in parse(path.name, path.read_bytes()))


def parse(name: str, data: bytes) -> list[Printed]:
    """Return the rows in the bytes of a table called `name`. Raises DataError where it is damaged."""
    try:
        return [_parsed(row) for row in csv.DictReader(data.decode().splitlines(), strict=True)]
    except (csv.Error, KeyError, ValueError) as error:
        raise DataError(f"The published table {name} is damaged: {error}. Install the package again.") from error


def _parsed(row: dict[str, str]) -> Printed:
    """Return one row of a table. Raises KeyError or ValueError where it is damaged."""
    if None in row or None in row.values():
        raise ValueError("a row has more or fewer cells than the heading")
    facts = {name: row.pop(name) for name in FACTS}
    sparsity, doubt = float(row.pop(SPARSITY_PERCENT)) / 100, row.pop(DOUBT)
    texts = {heading: text for heading, text in row.items() if text}
    if not 0 <= sparsity < 1 or not all(math.isfinite(float(text)) for text in texts.values()):
        raise ValueError("a number is none that can be")
    return Printed(**facts, sparsity=sparsity, texts=texts, doubt=doubt)


def why_not(setting: Mapping[str, str | bool]) -> str:
    """Return why no paper's numbers may stand beside those of a comparison's `setting`, "" where some may."""
    if setting["stand_in"]:
        return "they are of generated scenes, not of the real data"
    if setting["protocol"] != PROTOCOL:
        return f"they are measured by protocol {setting['protocol']}, those in print by {PROTOCOL}"
    if not _rows(setting):
        return f"no table of mtlbench published has {setting['dataset']} with model {setting['model']}"
    return ""


def _rows(setting: Mapping[str, str | bool]) -> list[Printed]:
    return [row for row in printed() if (row.dataset, row.model) == (setting["dataset"], setting["model"])]


def beside(comparison: Comparison, filters: Sequence[Filter] = ()) -> Comparison:
    """Return `comparison` with the papers' rows, each after ours and followed by ours minus theirs.

    A row of a paper belongs to the line of the same method, settings and sparsity; those without a line that
    `filters` take are there, too. Where nothing may be set beside it, a note says why.
    """
    reason = why_not(comparison.setting)
    if reason:
        note = f"Not set beside published numbers: {reason}."
        return replace(comparison, notes=(*comparison.notes, note))
    rows = [row for row in _rows(comparison.setting) if _taken(row, filters)]
    lines: list[Line] = []
    placed = set()
    for line in comparison.lines:
        lines.append(line)
        for row in rows:
            if (row.method, row.settings, row.sparsity) == (line.method, line.settings, line.sparsity):
                placed.add(row.source)
                theirs = _line(row, comparison.columns, line)
                lines += [theirs, _difference(line, theirs)]
    lines += [_line(row, comparison.columns) for row in rows if row.source not in placed]
    if comparison.grouped:
        lines.sort(key=lambda line: order(line)[:2])
    return replace(comparison, lines=tuple(lines), notes=(*comparison.notes, *_notes(comparison, rows)))


def _taken(row: Printed, filters: Sequence[Filter]) -> bool:
    """Return whether all filters take a row of a paper, which has no finetuning recipe to be judged by."""
    return all(each.takes(getattr(row, each.name)) for each in filters if hasattr(row, each.name))


def _line(row: Printed, columns: Sequence[Column], like: Line | None = None) -> Line:
    """Return a row of a paper as a line with those of `columns` that it has; in the group of the line `like`."""
    values = {column: row.value(column) for column in columns}
    return Line(
        method=row.method,
        settings=row.settings,
        finetune="",
        pretrained=False,
        sparsity=row.sparsity,
        seeds=(),
        cells={column: Cell(value, math.nan) for column, value in values.items() if value is not None},
        paradigm=like.paradigm if like else row.paradigm,
        source=row.source,
    )


def _difference(ours: Line, theirs: Line) -> Line:
    """Return the differences, ours minus theirs, of metrics: deltas may be of other ones in a paper."""
    cells = {
        column: Cell(ours.cells[column].mean - cell.mean, math.nan)
        for column, cell in theirs.cells.items()
        if is_metric(column) and column in ours.cells
    }
    return replace(theirs, cells=cells, source=DIFFERENCE)


def _notes(comparison: Comparison, rows: Sequence[Printed]) -> list[str]:
    """Return where the rows are from, what their recipe was if it was another, and what is doubtful about them."""
    notes = []
    for first in {(row.paper, row.table): row for row in rows}.values():
        notes.append(
            f"{first.paper}, {first.table}: as printed, {first.address}. Differences are ours minus theirs."
        )
        if not str(comparison.setting["recipe"]).startswith(first.recipe):
            notes.append(f"{first.paper} has another recipe, {first.recipe}, which may make a difference.")
    return [*notes, *doubts(rows)]


def doubts(rows: Sequence[Printed]) -> list[str]:
    """Return what is doubtful about `rows`, with the names of those that it is about."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.doubt:
            found.setdefault((f"{row.paper}, {row.table}", row.doubt), []).append(row.name)
    return [f"{', '.join(names)} in {where}: {doubt}." for (where, doubt), names in found.items()]
