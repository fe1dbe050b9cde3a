"""Figures of masks: agreement of tasks by layer, as in DiSparse's Figure 3, and densities and overlap of runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mtlprune_bench.analysis.overlap import LEVEL, added, watershed
from mtlprune_bench.analysis.sources import RunMasks, TaskMasks
from mtlprune_bench.analysis.views import between, layer_name
from mtlprune_bench.figures.style import COLOURS, DASHES, MARKERS, PALE, STYLE
from mtlprune_bench.pruning.masks import sparsity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERED = 12
"""How many runs a matrix has room to write numbers for."""
CHANCE = (0, (1, 1.5))
"""The dashes of what random masks would have, thinner than any method's."""


def _style(number: int) -> dict[str, Any]:
    """Return the colour, dash and marker of line `number`, which cycle at their own paces: 120 lines differ."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % 3],
        "marker": MARKERS[number % 5],
    }


def _figure(width: float, height: float, panels: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Return a figure of a size in inches with panels side by side, of these relative widths."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=list(panels))[0]
    return figure, list(axes)


def _line(axis: Axes, number: int, values: Sequence[float], label: str) -> None:
    """Draw values against 0, 1, ... as line `number`."""
    axis.plot(range(len(values)), values, markersize=5, linewidth=1.6, label=label, **_style(number))


def _chance(axis: Axes, number: int, values: Sequence[float]) -> None:
    """Draw what random masks would have for line `number`: thin and dotted, its markers hollow."""
    style = {**_style(number), "linestyle": CHANCE}
    axis.plot(range(len(values)), values, markersize=3, fillstyle="none", linewidth=0.8, **style)


def _layers_below(axis: Axes, names: Sequence[str], numbered: bool = False) -> None:
    labels = [f"{layer_name(name)}  {place}" if numbered else layer_name(name) for place, name in enumerate(names)]
    axis.set_xticks(range(len(names)), labels, rotation=90, fontsize=7)
    axis.set_xlim(-0.7, len(names) - 0.3)


def task_figure(found: Sequence[TaskMasks]) -> Figure:
    """Return the IoU of tasks' own masks by layer of the trunk, in %, a line for each of `found`.

    Thin and dotted is the IoU of random masks as dense in each layer; a ring is on the watershed layer. Layers
    beside the longest way through the trunk are left out.
    """
    longest = max((len(one.trunk.path) for one in found), default=0)
    figure, (axis,) = _figure(max(6.0, 2.5 + 0.25 * longest), 5.2, [1])
    for number, one in enumerate(found):
        parts = [one.overlaps[name] for name in one.trunk.path]
        ious = [part.iou for part in parts]
        place = watershed(ious)
        ending = "" if place is None else f"; watershed at layer {place}"
        _line(axis, number, [100 * iou for iou in ious], one.label + ending)
        _chance(axis, number, [100 * part.chance for part in parts])
        if place is not None:
            axis.plot(place, 100 * ious[place], "o", markersize=13, fillstyle="none", color="black")
    axis.plot(
        [],
        [],
        linestyle=CHANCE,
        color=PALE,
        linewidth=0.8,
        label="hollow: by chance, of random masks as dense in each layer",
    )
    axis.axhline(100 * LEVEL, color=PALE, linewidth=0.8, zorder=1)
    axis.set_ylim(0, 104)
    axis.set_yticks([0, 10, 20, 40, 60, 80, 100])
    axis.set_ylabel("IoU of the tasks' own masks (%)")
    paths = {one.trunk.path for one in found}
    if len(paths) == 1:
        _layers_below(axis, found[0].trunk.path, numbered=True)
    axis.set_xlabel("layer of the trunk, counted from 0")
    axis.set_title("Tasks' masks before training", loc="left", fontsize=11)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8)
    return figure


def run_figure(runs: Sequence[RunMasks]) -> Figure:
    """Return the density of `runs` by layer, in %, and of several of them the IoU of each two, in %."""
    names = [name for group in runs[0].components.by_name().values() for name in group]
    wide = 2.5 + 0.2 * len(names)
    several = len(runs) > 1
    square = 1.5 + 0.45 * len(runs)
    panels = [wide, square] if several else [wide]
    figure, axes = _figure(max(7.0, sum(panels)), max(4.8, square), panels)
    for number, run in enumerate(runs):
        densities = [100 * (1 - sparsity(run.masks, [name])) for name in names]
        _line(axes[0], number, densities, f"{number + 1}  {run.label}")
    _layers_below(axes[0], names)
    _component_bands(axes[0], runs[0])
    axes[0].set_ylim(0, 104)
    axes[0].set_ylabel("density (%)")
    if several:
        _matrix(axes[1], runs)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8)
    return figure


def _component_bands(axis: Axes, run: RunMasks) -> None:
    """Write the names of the components above their layers, and draw lines between them."""
    start = 0
    for component, names in run.components.by_name().items():
        if start:
            axis.axvline(start - 0.5, color=PALE, linewidth=0.8)
        axis.annotate(component, (start - 0.4, 1.01), xycoords=("data", "axes fraction"), fontsize=9)
        start += len(names)


def _matrix(axis: Axes, runs: Sequence[RunMasks]) -> None:
    """Draw the IoU of each two runs as greys, with the numbers where there is room."""
    import numpy as np

    ious = np.eye(len(runs))
    for (row, one), (column, other) in itertools.combinations(enumerate(runs), 2):
        ious[row, column] = ious[column, row] = added(between(one, other).values()).iou
    axis.grid(False)
    axis.imshow(100 * ious, cmap="Greys", vmin=0, vmax=100)
    numbers = [str(number) for number in range(1, len(runs) + 1)]
    axis.set_xticks(range(len(runs)), numbers)
    axis.set_yticks(range(len(runs)), numbers)
    axis.spines[:].set_visible(False)
    axis.set_title("IoU of the whole masks (%)", loc="left", fontsize=9)
    if len(runs) <= NUMBERED:
        for row, column in itertools.product(range(len(runs)), repeat=2):
            colour = "white" if ious[row, column] > 0.5 else "black"
            text = f"{100 * ious[row, column]:.0f}"
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
