"""The hooks. What decides a number is registered; what hooks in only observes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

PROJECT = "mtlbench"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[[Any], None]


@hookspec
def register_methods(register: Register) -> None:
    """Call `register(method)` for each pruning method: a `Method`."""


@hookspec
def register_scorers(register: Register) -> None:
    """Call `register(scorer)` for each scorer: a frozen object with a `name`, called with a `Scoring`."""


@hookspec
def register_arbiters(register: Register) -> None:
    """Call `register(arbiter)` for each arbiter: a frozen object with a `name`, called with stacked ranks."""


@hookspec
def register_schedules(register: Register) -> None:
    """Call `register(schedule)` for each schedule: a frozen object with a `name` and a `plan` method."""


@hookspec
def register_allocations(register: Register) -> None:
    """Call `register(allocation)` for each allocation: a frozen object with a `name` and a `groups` method."""


@hookspec
def register_datasets(register: Register) -> None:
    """Call `register(dataset)` for each dataset: a `Dataset`."""


@hookspec
def register_models(register: Register) -> None:
    """Call `register(model)` for each model family: a `Model`."""


@hookspec
def register_tasks(register: Register) -> None:
    """Call `register(task)` for each task: a `Task`."""


@hookspec
def register_metrics(register: Register) -> None:
    """Call `register(metric)` for each metric of any task: a `Metric`."""


@hookspec
def register_runners(register: Register) -> None:
    """Call `register(runner)` for each way to carry out jobs: a frozen object with a `name`, a `Runner`."""


@hookspec
def register_commands(register: Register) -> None:
    """Call `register(command)` for each command of `mtlbench`: a `click.Command`."""


@hookspec
def run_started(run: Any) -> None:
    """A run begins; `run` is a `RunInfo`."""


@hookspec
def step_finished(run: Any, step: int, losses: Mapping[str, float]) -> None:
    """Optimizer step `step` (from 0) was made; `losses` are the tasks' losses, not weighted."""


@hookspec
def masks_updated(run: Any, step: int, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """The masks changed before optimizer step `step`; both are copies."""


@hookspec
def training_measured(run: Any, step: int, numbers: Mapping[str, float]) -> None:
    """Now and then, and after the last step: `numbers` are what a training is like after optimizer step `step`.

    By name: `learning-rate`, `total-loss` (weighted), `sparsity/whole` and of each component, `layer-sparsity/` of
    each layer, and of learned methods `threshold/` of each group and `task-weight/` of each task. Fractions are
    in [0, 1]. They are only made where somebody listens.
    """


@hookspec
def model_evaluated(run: Any, step: int, rows: list[dict[str, Any]]) -> None:
    """The model was measured after `step` optimizer steps."""


@hookspec
def predictions_made(run: Any, step: int, pictures: Mapping[str, Any]) -> None:
    """The final model was tried: `pictures`, RGB uint8 [H, W, 3] by name, show truth above prediction.

    They are of the first test images, and only made where somebody listens.
    """


@hookspec
def run_finished(run: Any, rows: list[dict[str, Any]]) -> None:
    """A run ended, well or not; `rows` are a copy of what the store holds of it."""
