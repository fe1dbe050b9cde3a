"""Charts of results: metrics against sparsity, accuracy against cost, and where the removed weights are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mtlprune_bench.errors import UsageError
from mtlprune_bench.figures.style import (
    COLOURS,
    FRONT,
    INK,
    LETTER,
    LINE,
    MARKERS,
    band,
    is_dense,
    legend,
    looks,
    names_of,
    panels,
    setting_of,
    titled,
)
from mtlprune_bench.results.captions import ARROWS, label
from mtlprune_bench.results.comparisons import DELTA, Cell, Column, Comparison, Line
from mtlprune_bench.results.views import check_columns, with_columns
from mtlprune_bench.store import COSTS, SPARSITY, WHOLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS = "test.loss"
"""What is drawn where nothing else is asked for: the weighted loss on the test set, as in DiSparse's Figure 1."""

PASSES = "passes"
COST_UNITS = {"steps": "optimizer steps", PASSES: "forward and backward passes", "seconds": "seconds"}
"""What accuracy can be drawn against: costs of a run, its dense training included."""

DENSE: tuple[Any, ...] = ((0, (4, 2)), (0, (1, 1.5)), (0, (4, 2, 1, 2)), "-")
"""The dashes of dense networks, one after the other."""

PANEL = 1.9
"""The width of a panel of components in inches."""

NOTHING = Cell(math.nan, math.nan)


def chosen_columns(comparison: Comparison, names: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns called `names`, one panel each. Raises UsageError for an unknown name."""
    check_columns([comparison], names)
    return with_columns(comparison, names).columns


def scale(column: Column) -> float:
    """Return what the numbers of a column are multiplied by: fractions are drawn in percent."""
    return 100.0 if column.unit == "fraction" else 1.0


def reached(line: Line) -> float:
    """Return the sparsity of a line in percent: that of its masks, where known, else the one asked for."""
    return 100 * line.reached.get(line.sparsity, line.sparsity)


def sparsity_figure(comparison: Comparison, names: Sequence[str] = (LOSS,)) -> Figure:
    """Return metrics against sparsity, a line a method with a band of one standard deviation over seeds.

    Dense networks are horizontal lines. Raises UsageError for an unknown metric.
    """
    columns = chosen_columns(comparison, names)
    figure, axes = panels(len(columns), *setting_of(comparison))
    for axis, column in zip(axes, columns, strict=True):
        _against_sparsity(axis, comparison.lines, column)
    legend(figure, axes)
    return figure


def _against_sparsity(axis: Axes, lines: Sequence[Line], column: Column) -> None:
    called, drawings = names_of(lines), looks(lines)
    methods: dict[str, list[Line]] = {}
    for line in lines:
        if column in line.cells:
            methods.setdefault(label(line), []).append(line)
    for name, own in methods.items():
        if is_dense(own[0]):
            continue
        drawn = drawings[name]
        points = sorted(((reached(line), line.cells[column]) for line in own), key=lambda point: point[0])
        places = [place for place, _ in points]
        axis.plot(places, [scale(column) * cell.mean for _, cell in points], label=called[name], **drawn)
        edges = [_edges(cell, scale(column)) for _, cell in points]
        band(axis, places, [low for low, _ in edges], [high for _, high in edges], drawn["color"])
    _dense_lines(axis, lines, column)
    axis.set_xlabel("sparsity (%)")
    axis.set_ylabel(title_of(column))


def _edges(cell: Cell, factor: float) -> tuple[float, float]:
    """Return a standard deviation below and above the mean; nan for a single seed."""
    return factor * (cell.mean - cell.deviation), factor * (cell.mean + cell.deviation)


def title_of(column: Column) -> str:
    """Return what an axis shows: the metric, of what, its unit, and an arrow to the better side."""
    unit = "%" if column.unit == "fraction" else column.unit
    name = column.metric.replace("_", " ") + (f" ({column.definition})" if column.definition else "")
    parts = (column.task or column.split, name, f"({unit})" if unit else "", ARROWS[column.higher_is_better])
    return " ".join(part for part in parts if part)


def _dense_lines(axis: Axes, lines: Sequence[Line], column: Column) -> None:
    """Draw what dense networks reach as horizontal lines, with a band."""
    dense = [line for line in lines if is_dense(line) and column in line.cells]
    for line, dash in zip(dense, DENSE * len(dense), strict=False):
        cell = line.cells[column]
        axis.axhline(
            scale(column) * cell.mean, color=INK, linestyle=dash, linewidth=1, zorder=1, label=label(line)
        )
        low, high = _edges(cell, scale(column))
        if not math.isnan(low):
            axis.axhspan(low, high, color=INK, alpha=0.07, linewidth=0)


def cost_of(line: Line, cost: str) -> float:
    """Return what a line has cost, mean over seeds, in the unit of `cost`; nan where that is not known."""
    means = {column.metric: cell.mean for column, cell in line.cells.items() if column.metric in COSTS}
    if cost == PASSES:
        return means.get("forward", math.nan) + means.get("backward", math.nan)
    return means.get(cost, math.nan)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of those `points`, (cost, value), that none beats: cheaper and as good, or better.

    By cost, of the cheapest first; the higher value is the better one. Points with nan are left out.
    """
    order = sorted(
        (number for number, point in enumerate(points) if not any(map(math.isnan, point))),
        key=lambda number: (points[number][0], -points[number][1]),
    )
    best, found = -math.inf, list[int]()
    for number in order:
        cost, value = points[number]
        if value > best or (found and points[found[-1]] == (cost, value)):
            found.append(number)
            best = value
    return found


def cost_figure(comparison: Comparison, name: str | None = None, cost: str = PASSES) -> Figure:
    """Return a metric against its cost, one of COST_UNITS, a panel for each sparsity, with the Pareto front.

    Without a name the metric is delta, where there is a dense network, else the loss. Lines that have not reached
    their sparsity take no part in the front. Raises UsageError for an unknown metric, or more than one.
    """
    name = name or (DELTA if any(column.metric == DELTA for column in comparison.columns) else LOSS)
    columns = chosen_columns(comparison, [name])
    if len(columns) > 1:
        known = ", ".join(f"{column.task or column.split}.{column.metric}" for column in columns)
        raise UsageError(f"'{name}' may be any of {known}; name one of them by --metric.")
    groups = by_sparsity(comparison)
    figure, axes = panels(len(groups), *setting_of(comparison))
    for axis, (asked, lines) in zip(axes, groups.items(), strict=True):
        _against_cost(axis, lines, columns[0], cost, comparison.lines)
        _dense_lines(axis, comparison.lines, columns[0])
        if columns[0].metric == DELTA:
            axis.axhline(0, color=INK, linewidth=0.8, zorder=1, label="as good as dense")
        axis.set_title(f"asked for {100 * asked:g} %", fontsize=8)
        axis.set_xlabel(COST_UNITS[cost])
        axis.set_ylabel(title_of(columns[0]))
    legend(figure, axes)
    return figure


def _against_cost(
    axis: Axes, lines: Sequence[Line], column: Column, cost: str, everything: Sequence[Line]
) -> None:
    called, drawings = names_of(everything), looks(everything)
    sign = 1 if column.higher_is_better else -1
    points = [(cost_of(line, cost), scale(column) * line.cells.get(column, NOTHING).mean) for line in lines]
    for line, (place, value) in zip(lines, points, strict=True):
        if math.isnan(place) or math.isnan(value):
            continue
        spread = scale(column) * line.cells[column].deviation
        if not math.isnan(spread):
            axis.errorbar(place, value, spread, color=drawings[label(line)]["color"], linewidth=0.8)
        axis.plot(place, value, label=called[label(line)], **drawings[label(line)] | {"linestyle": ""})
    compete = [
        point if line.competes(line.sparsity) else (math.nan,) * 2
        for line, point in zip(lines, points, strict=True)
    ]
    best = front([(place, sign * value) for place, value in compete])
    axis.step(
        [points[number][0] for number in best],
        [points[number][1] for number in best],
        where="post",
        color=FRONT,
        linewidth=3,
        zorder=0,
        label="Pareto front",
    )
    axis.margins(0.1)


def by_sparsity(comparison: Comparison) -> dict[float, list[Line]]:
    """Return the lines that are not dense by the sparsity asked for. Raises UsageError where there are none."""
    groups: dict[float, list[Line]] = {}
    for line in comparison.lines:
        if not is_dense(line):
            groups.setdefault(line.sparsity, []).append(line)
    if not groups:
        raise UsageError(
            f"All results on {comparison.setting['dataset']} with {comparison.setting['recipe']} are of dense "
            "networks. Prune some, or leave this setting out by --filter."
        )
    return groups


def components_of(lines: Sequence[Line]) -> list[str]:
    """Return the components of which the lines have a sparsity, those of all tasks first."""
    found = {column.component for line in lines for column in line.cells if column.metric == SPARSITY}
    return sorted(found - {WHOLE}, key=lambda name: (name != "shared", "+" not in name, name))


def components_figure(comparison: Comparison) -> Figure:
    """Return the sparsity of each component at the end, a row a method, a panel for each sparsity asked for."""
    groups = by_sparsity(comparison)
    called = names_of(comparison.lines)
    rows = list(dict.fromkeys(called[label(line)] for lines in groups.values() for line in lines))
    wide = LETTER * max(map(len, rows))
    figure = titled(wide + PANEL * len(groups), 0.7 + LINE * len(rows), *setting_of(comparison))
    axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0].tolist()
    for axis, (asked, lines) in zip(axes, groups.items(), strict=True):
        axis.axvline(100 * asked, color=INK, linestyle=DENSE[0], linewidth=1, zorder=1, label="asked for")
        for number, name in enumerate(components_of(comparison.lines)):
            points = [(_of(line, name), rows.index(called[label(line)])) for line in lines]
            axis.plot(
                [value for value, _ in points],
                [row for _, row in points],
                linestyle="",
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                alpha=0.85,
                label=name,
            )
        axis.set_xlabel("sparsity (%)")
        axis.set_title(f"asked for {100 * asked:g} %", fontsize=8)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    legend(figure, axes)
    return figure


def _of(line: Line, component: str) -> float:
    """Return the sparsity of a component in percent, nan where it is not known."""
    column = next((c for c in line.cells if c.metric == SPARSITY and c.component == component), None)
    return 100 * line.cells[column].mean if column else math.nan
