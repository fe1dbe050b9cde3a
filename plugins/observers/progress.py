"""A progress bar on the terminal: loss, steps a second and time left of every training. Quiet elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mtlprune_bench import hookimpl

_bars: dict[str, Progress] = {}
"""The bar of each run in this process that is training."""


@hookimpl
def run_started(run: Any) -> None:
    """Show a bar for the stage, if standard error is a terminal."""
    _close(run.id)
    console = Console(stderr=True)
    if not console.is_terminal:
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[losses]}"),
        console=console,
        transient=True,
    )
    bar.add_task(
        f"{run.method} {run.sparsity:g} seed {run.seed}: {run.stage}", total=run.steps, speed="", losses=""
    )
    bar.start()
    _bars[run.id] = bar


@hookimpl
def step_finished(run: Any, step: int, losses: Mapping[str, float]) -> None:
    """Move the bar."""
    if run.id not in _bars:
        return
    bar = _bars[run.id]
    task = bar.tasks[0]
    speed = f"{task.speed:.3g} steps/s" if task.speed else ""
    # Three letters a task, so that five tasks fit a narrow terminal.
    text = " ".join(f"{name[:3]} {loss:.2f}" for name, loss in losses.items())
    bar.update(task.id, completed=step + 1, speed=speed, losses=text)


@hookimpl
def run_finished(run: Any, rows: list[dict[str, Any]]) -> None:
    """Take the bar away."""
    _close(run.id)


def _close(run_id: str) -> None:
    if run_id in _bars:
        _bars.pop(run_id).stop()
