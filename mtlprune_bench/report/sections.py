"""Sections: one setting of a report, its columns, lines, methods and notes, as JSON-like values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mtlprune_bench.figures.style import COLOURS, INK, looks, names_of
from mtlprune_bench.report.differences import Paired
from mtlprune_bench.results.captions import DIGITS, caption, footnotes, header, label, number, places
from mtlprune_bench.results.comparisons import COLUMN, DIFFERENCE, Column, Comparison, Line, records
from mtlprune_bench.results.published import beside
from mtlprune_bench.results.views import Filter, block, column_names
from mtlprune_bench.store import FINISHED

if TYPE_CHECKING:
    import pandas as pd

Values = Mapping[tuple[str, Column], float]
"""What was measured, by run and column."""


def measured(rows: pd.DataFrame) -> Values:
    """Return the single numbers of `rows`, of which tables have means."""
    return {
        (row["run"], Column(*(row[name] for name in COLUMN))): row["value"]
        for row in records(rows)
        if row["status"] == FINISHED and row["value"] is not None
    }


def section(comparison: Comparison, values: Values, pairs: Paired, filters: Sequence[Filter]) -> dict[str, Any]:
    """Return one setting of a report: facts, columns, lines, methods, pairs, and what is to be noted."""
    known = beside(comparison, filters)
    marks = places(known)
    return {
        "caption": caption(comparison),
        "facts": {name: value if isinstance(value, str) else bool(value) for name, value in _facts(comparison)},
        "columns": [_column(column) for column in comparison.columns],
        "lines": list(_lines(known, marks, values)),
        "methods": methods(known.lines),
        "notes": footnotes(replace(comparison, failures={})),
        "published": list(known.notes[len(comparison.notes) :]),
        "failures": list(comparison.failures),
        "pairs": pairs.as_json(),
        "paired_columns": [_column(column) for column in pairs.columns],
    }


def _facts(comparison: Comparison) -> Iterable[tuple[str, str | bool]]:
    finetune = sorted({line.finetune for line in comparison.lines if line.finetune})
    yield from comparison.setting.items()
    if finetune:
        yield "finetune", "; or ".join(finetune)


def _column(column: Column) -> dict[str, Any]:
    """Return what a column is called, and how its numbers are written."""
    return {
        **{name: value for name, value in asdict(column).items() if name != "sparsity"},
        "name": header(column),
        "key": column_names(column)[0],
        "block": block(column),
        "scale": 100 if column.unit == "fraction" else 1,
        "digits": DIGITS.get(column.unit, 4),
    }


def _lines(
    comparison: Comparison, marks: Sequence[Mapping[Column, int]], values: Values
) -> Iterable[dict[str, Any]]:
    """Yield the lines; what papers print of a method, and the difference from it, stand in the line before."""
    last: dict[str, Any] | None = None
    own: Line | None = None
    for line, places_ in zip(comparison.lines, marks, strict=True):
        found = _line(line, comparison.columns, places_, values)
        if line.source and last is not None and own is not None and _same(line, own):
            last["published"].append(found)
            continue
        if last is not None:
            yield last
        last, own = found, line
    if last is not None:
        yield last


def _same(line: Line, own: Line) -> bool:
    return (line.method, line.settings, line.sparsity) == (own.method, own.settings, own.sparsity)


def _line(line: Line, columns: Sequence[Column], places_: Mapping[Column, int], values: Values) -> dict[str, Any]:
    """Return a line; its cells have their text, mean, deviation, the runs' own values, and place, 0 for none."""
    reached = line.reached.get(line.sparsity)
    return {
        "label": label(line),
        "paradigm": line.paradigm,
        "asked": line.sparsity,
        "reached": reached,
        "competes": line.competes(line.sparsity),
        "pretrained": line.pretrained,
        "seeds": list(line.seeds),
        "runs": list(line.runs),
        "source": line.source,
        "difference": line.source == DIFFERENCE,
        "published": [],
        "cells": [_cell(line, column, places_.get(column, 0), values) for column in columns],
    }


def _cell(line: Line, column: Column, place: int, values: Values) -> list[Any] | None:
    cell = line.cells.get(column)
    if cell is None:
        return None
    single = [values.get((run, column)) for run in line.runs]
    text = number(cell, column.unit, signed=line.source == DIFFERENCE)
    return [text, cell.mean, cell.deviation, single if any(v is not None for v in single) else [], place]


def methods(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Return by label how lines are called and drawn, as in all figures; `colour` is a place among COLOURS."""
    drawn, short = looks(lines), names_of(lines)
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line.source:
            continue
        look = drawn[label(line)]
        found[label(line)] = {
            "name": short[label(line)],
            "paradigm": line.paradigm,
            "plain": not line.settings,
            "colour": None if look["color"] == INK else COLOURS.index(look["color"]),
            "marker": look["marker"],
            "hollow": look["markerfacecolor"] == "white",
            "dash": [] if look["linestyle"] == "-" else list(look["linestyle"][1]),
        }
    return found
