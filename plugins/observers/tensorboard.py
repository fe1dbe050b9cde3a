"""Writes what happens in a run to TensorBoard's event files, in its folder, where TensorBoard is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mtlprune_bench import hookimpl

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

F = TypeVar("F", bound=Callable[..., Any])

QUEUE, SECONDS = 1000, 2
"""Events that wait to be written, and seconds after which they are in the file at the latest."""


def listen(function: F) -> F:
    """Make `function` a hook where TensorBoard is installed."""
    return hookimpl(function) if importlib.util.find_spec("tensorboard") is not None else function


@dataclass
class Log:
    """The open event file of a stage, with the numbers that were last written to it."""

    folder: Path
    writer: SummaryWriter
    last: dict[str, float] = field(default_factory=dict)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write numbers of one step."""
        for tag, number in numbers.items():
            self.writer.add_scalar(tag, number, step)


_logs: dict[str, Log] = {}
"""The log of each run in this process that is training."""


@listen
def run_started(run: Any) -> None:
    """Leave the stage before."""
    _close(run.id)


@listen
def step_finished(run: Any, step: int, losses: Mapping[str, float]) -> None:
    """Write the losses; those of the last step end the file, as no other process may do so."""
    _log(run, step).add(step, {f"loss/{task}": loss for task, loss in losses.items()})
    if step == run.steps - 1:
        _close(run.id)


@listen
def training_measured(run: Any, step: int, numbers: Mapping[str, float]) -> None:
    """Write those numbers that have changed, and after the last step all."""
    log = _log(run, step)
    last = step == run.steps - 1
    changed = {tag: number for tag, number in numbers.items() if last or log.last.get(tag) != number}
    log.add(step, changed)
    log.last.update(changed)


@listen
def masks_updated(run: Any, step: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Write the share of all weights whose mask flipped; a network without masks keeps all."""
    flipped = sum(int((before[name] != mask if before else ~mask).sum()) for name, mask in after.items())
    _log(run, step).add(step, {"mask-churn": flipped / sum(mask.numel() for mask in after.values())})


@listen
def model_evaluated(run: Any, step: int, rows: list[dict[str, Any]]) -> None:
    """Write what was measured, by split, task and metric."""
    parts = ((row, [row["split"], row["task"] or row["component"], row["metric"]]) for row in rows)
    numbers = {f"final/{'-'.join(filter(None, names))}": row["value"] for row, names in parts}
    _log(run, step).add(step, numbers)


@listen
def predictions_made(run: Any, step: int, pictures: Mapping[str, Any]) -> None:
    """Write the pictures."""
    log = _log(run, step)
    for name, picture in pictures.items():
        log.writer.add_image(f"predictions/{name}", picture, step, dataformats="HWC")
    _close(run.id)


@listen
def run_finished(run: Any, rows: list[dict[str, Any]]) -> None:
    """Close the file."""
    _close(run.id)


def _log(run: Any, step: int) -> Log:
    """Return the log of a run's present stage, which begins at `step` where it is new or goes on."""
    log = _logs.get(run.id)
    if log is None or log.folder != run.stage_folder:
        _close(run.id)
        log = _logs[run.id] = Log(run.stage_folder, _writer(run.stage_folder, step))
    return log


def _writer(folder: Path, step: int) -> SummaryWriter:
    """Return what writes to a new event file; earlier ones are void from `step` on, where a resumed run begins."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step, max_queue=QUEUE, flush_secs=SECONDS)


def _close(run_id: str) -> None:
    if run_id in _logs:
        _logs.pop(run_id).writer.close()
