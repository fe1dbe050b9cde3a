"""Observers are told what happens in a run, and cannot change it: they get copies, and may fail."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlprune_bench.host.registry import Registry
from mtlprune_bench.pruning.masks import Masks
from mtlprune_bench.store import Row


@dataclass(frozen=True)
class RunInfo:
    """What observers know of a run: its names, its folder, which stage it is in and how long that is.

    `stage_folder` is where the present stage keeps its files; dense trainings and rounds have their own.
    """

    id: str
    method: str
    dataset: str
    model: str
    sparsity: float
    seed: int
    folder: Path
    stage: str
    steps: int
    stage_folder: Path


class Observers:
    """Calls the observer hooks of all plugins for one run, if they are to be `told`: by one of its processes."""

    def __init__(self, registry: Registry, run: RunInfo, told: bool = True) -> None:
        self.run = run
        self._hook = registry.hook
        self._told = told

    def run_started(self) -> None:
        """Tell that the run, or its next stage, begins."""
        self._tell("run_started")

    def step_finished(self, step: int, losses: Mapping[str, float]) -> None:
        """Tell the tasks' losses of an optimizer step."""
        self._tell("step_finished", step=step, losses=dict(losses))

    def masks_updated(self, step: int, before: Masks, after: Masks) -> None:
        """Tell how the masks changed; they are copied only if somebody listens."""
        if self._told and self._hook.masks_updated.get_hookimpls():
            copies = [{name: mask.clone() for name, mask in masks.items()} for masks in (before, after)]
            self._tell("masks_updated", step=step, before=copies[0], after=copies[1])

    def training_measured(self, step: int, read: Callable[[], Mapping[str, float]]) -> None:
        """Tell what a training is like, which is read only if somebody listens."""
        if self._told and self._hook.training_measured.get_hookimpls():
            self._tell("training_measured", step=step, numbers=dict(read()))

    def model_evaluated(self, step: int, rows: list[Row]) -> None:
        """Tell what was measured after `step` steps."""
        self._tell("model_evaluated", step=step, rows=[dict(row) for row in rows])

    def predictions_made(self, step: int, make: Callable[[], Mapping[str, Any]]) -> None:
        """Tell what the final model predicts, which is made only if somebody listens; making it may fail."""
        if not (self._told and self._hook.predictions_made.get_hookimpls()):
            return
        try:
            pictures = make()
        except Exception as error:
            warnings.warn(f"No pictures: {type(error).__name__}: {error}. The run goes on.", stacklevel=2)
            return
        self._tell("predictions_made", step=step, pictures=dict(pictures))

    def run_finished(self, rows: list[Row]) -> None:
        """Tell that the run ended, and how."""
        self._tell("run_finished", rows=[dict(row) for row in rows])

    def _tell(self, event: str, **facts: Any) -> None:
        for implementation in getattr(self._hook, event).get_hookimpls() if self._told else ():
            known = {"run": self.run, **facts}
            try:
                implementation.function(**{name: known[name] for name in implementation.argnames})
            except Exception as error:
                warnings.warn(
                    f"Observer '{implementation.plugin_name}' failed in {event}: "
                    f"{type(error).__name__}: {error}. The run goes on.",
                    stacklevel=2,
                )
