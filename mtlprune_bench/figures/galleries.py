"""Galleries: test images with their truth and the predictions of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtlprune_bench.errors import UsageError
from mtlprune_bench.figures.style import LINE, titled
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.runs.experiment import Experiment
from mtlprune_bench.runs.predictions import Scene, scenes
from mtlprune_bench.runs.reopening import final_network, reopen
from mtlprune_bench.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDE = 1.9
"""The width of a picture in inches."""


def predictions_figure(
    names: Sequence[str], numbers: Sequence[int], store: Store, registry: Registry, data_root: str | None = None
) -> Figure:
    """Return a row for each task of each of the test images `numbers`: image, truth, and what each run predicts.

    `names` are runs as `Store.find` takes them. Pictures of one row have the same colours for the same values;
    pixels without a label are grey. Raises UsageError for runs that were not measured on the same images, or that
    cannot be rebuilt, and StoreError where a run's weights are missing.
    """
    folders = [store.find(name) for name in names]
    experiments = [reopen(folder, registry, data_root) for folder in folders]
    _check(experiments)
    networks = [final_network(experiment, store)[0] for experiment in experiments]
    found = list(scenes(experiments[0], networks, numbers))
    columns = ["image", "truth", *map(_heading, experiments)]
    shape = found[0].image.shape
    rows = [(scene, task) for scene in found for task in scene.truths]
    height = len(rows) * SIDE * shape[0] / shape[1] + LINE * 3
    figure = titled(SIDE * len(columns), height, _setting(experiments[0]), experiments[0].opened.stand_in)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (scene, task) in zip(axes, rows, strict=True):
        _draw(line.tolist(), scene, task)
    for axis, heading in zip(axes[0], columns, strict=True):
        axis.set_title(heading, fontsize=7)
    return figure


def _check(experiments: Sequence[Experiment]) -> None:
    """Raise UsageError unless all `experiments` were measured on the same images, in the same way."""
    first = experiments[0].config
    for other in (experiment.config for experiment in experiments[1:]):
        for what in ("dataset", "data", "labels", "protocol"):
            if getattr(first, what) != getattr(other, what):
                raise UsageError(
                    f"{first.run_id} and {other.run_id} differ in {what}, so that their predictions are not to be "
                    "compared; name runs of one table."
                )


def _draw(axes: Sequence[Axes], scene: Scene, task: str) -> None:
    """Draw a row; the image itself stands in the first row of its scene only."""
    pictures = [scene.truths[task], *scene.predictions[task]]
    for axis in axes:
        axis.set_axis_off()
    if task == next(iter(scene.truths)):
        axes[0].imshow(scene.image)
        axes[0].text(0, 1.02, f"test {scene.number}", transform=axes[0].transAxes, fontsize=6, va="bottom")
    for axis, picture in zip(axes[1:], pictures, strict=True):
        axis.imshow(picture, interpolation="nearest")
    axes[1].text(-0.04, 0.5, task, transform=axes[1].transAxes, rotation=90, ha="right", va="center", fontsize=7)


def _heading(experiment: Experiment) -> str:
    config = experiment.config
    changes = f"\n{experiment.changes}" if experiment.changes else ""
    asked = f"{100 * config.sparsity:g} %, " if config.sparsity else ""
    return f"{config.method.name}{changes}\n{asked}seed {config.seed}"


def _setting(experiment: Experiment) -> str:
    """Return what all pictures have in common, in words."""
    config, opened = experiment.config, experiment.opened
    data = f"{config.dataset} STAND-IN, not the real data" if opened.stand_in else config.dataset
    return f"{data}: {opened.splits.origin}; test set; protocol {config.protocol.name}"
