"""Runs: the network brought to its final weights, measured, and turned into rows."""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mtlprune_bench.adapters import Samples
from mtlprune_bench.errors import DivergedError, MtlbenchError, StoreError
from mtlprune_bench.files import is_locked, locked, write_text
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.paradigms import paradigm
from mtlprune_bench.pruning.components import Components, discover, prunable
from mtlprune_bench.pruning.masks import Masks, sparsity
from mtlprune_bench.runs.config import Engine, describe
from mtlprune_bench.runs.costs import kept_cost, parts
from mtlprune_bench.runs.environment import environment, resolve_device
from mtlprune_bench.runs.experiment import Experiment, differences, recipe_text
from mtlprune_bench.runs.pipeline import prepare_network
from mtlprune_bench.runs.predictions import sheets
from mtlprune_bench.runs.reopening import asked_for
from mtlprune_bench.runs.stages import DISCOVERY_SIZE, Stages, waiting
from mtlprune_bench.store import (
    CONFIG,
    COSTS,
    DIVERGED,
    FAILED,
    FINISHED,
    LOCK,
    LOSS,
    PLAN,
    REQUEST,
    SPARSITY,
    WHOLE,
    Row,
    Store,
    read_json,
    read_rows,
    write_json,
    write_rows,
)
from mtlprune_bench.training.evaluate import Value, evaluate
from mtlprune_bench.training.networks import MULTITASK


def execute(
    experiment: Experiment,
    store: Store,
    registry: Registry,
    engine: Engine,
    make: Callable[[], list[Row]] | None = None,
) -> list[Row]:
    """Return the rows of `experiment`, from the store if it was run before, else by running it.

    `make` measures the rows somewhere else; without it, that is done in this process. A run that fails becomes
    one row with its reason, and may be tried again; its checkpoints stay. Raises StoreError where the store cannot
    be written, as no row can be kept then either.
    """
    folder = store.run_folder(experiment.config.run_id)
    with locked(folder / LOCK, waiting(folder)):
        rows = read_rows(folder)
        if rows and all(row["status"] == FINISHED for row in rows):
            return rows
        run = Run(experiment, store, registry, engine)
        made: list[Row] = []
        status, reason = attempt(folder, lambda: made.extend((make or run.rows)()))
        rows = made if status == FINISHED else [run.failure(status, reason)]
        write_rows(folder, rows)
        run.stages.observers("finished").run_finished(rows)
    return rows


def attempt(folder: Path, action: Callable[[], object]) -> tuple[str, str]:
    """Return how `action` ended, a status and its reason; `folder` keeps the traceback of a failure.

    Raises StoreError where the store cannot be written.
    """
    try:
        action()
    except StoreError:
        raise
    except DivergedError as error:
        return DIVERGED, str(error)
    except Exception as error:
        write_text(folder / "error.log", traceback.format_exc())
        return FAILED, str(error) if isinstance(error, MtlbenchError) else f"{type(error).__name__}: {error}"
    return FINISHED, ""


def write_plan(experiment: Experiment, store: Store, again: bool = True) -> None:
    """Write down what a run is, and which stages it refers to. Raises StoreError.

    Without `again` only what is missing: earlier versions wrote less, and what was damaged is set aside.
    """
    folder = store.run_folder(experiment.config.run_id)
    plan = {
        "steps": experiment.config.recipe.steps,
        "stages": list(experiment.stages),
        "updates": [dataclasses.asdict(update) for update in experiment.plan],
    }
    for name, content in ((CONFIG, describe(experiment.config)), (PLAN, plan), (REQUEST, asked_for(experiment))):
        if again or not (folder / name).exists():
            write_json(folder / name, content)


def record_failure(experiment: Experiment, store: Store, registry: Registry, status: str, reason: str) -> None:
    """Write down that a run failed, where its process could not, unless another one is at it now."""
    folder = store.run_folder(experiment.config.run_id)
    if is_locked(folder / LOCK):
        return
    with locked(folder / LOCK, waiting(folder)):
        rows = read_rows(folder)
        if not rows or rows[0]["status"] != FINISHED:
            run = Run(experiment, store, registry, Engine(device="cpu"))
            write_plan(experiment, store)
            write_rows(folder, [run.failure(status, reason)])


@dataclass
class Run:
    """One run being executed."""

    experiment: Experiment
    store: Store
    registry: Registry
    engine: Engine

    def __post_init__(self) -> None:
        self.config = self.experiment.config
        self.device = resolve_device(self.engine.device)
        self.folder = self.store.run_folder(self.config.run_id)
        self.stages = Stages(self.experiment, self.store, self.registry, self.engine, self.device)
        updates = [dataclasses.asdict(update) for update in self.experiment.plan]
        self.paradigm = paradigm(describe(self.config.method), updates)

    def rows(self) -> list[Row]:
        """Execute all stages and return what was measured; of several processes, in the first."""
        if self.stages.processes.first:
            self._write_facts()
        model = self.experiment.build_model(self.device)
        masks = prepare_network(self.stages, model)
        if not self.stages.processes.first:
            return []
        rows = self._measure(model, masks)
        observers = self.stages.observers("evaluate")
        observers.model_evaluated(self.config.recipe.steps, rows)
        observers.predictions_made(self.config.recipe.steps, lambda: sheets(self.experiment, model))
        return rows

    def _write_facts(self) -> None:
        """Write the configuration, the plan, and the environment of this session beside earlier ones."""
        write_plan(self.experiment, self.store)
        sessions = read_json(self.folder / "environment.json") or []
        write_json(self.folder / "environment.json", [*sessions, self._session()])

    def _session(self) -> dict[str, object]:
        """Return the environment of this session, and how many devices of its kind take part."""
        return {**environment(self.device), "devices": self.stages.processes.count}

    def _measure(self, model: nn.Module, masks: Masks) -> list[Row]:
        """Return the rows: metrics on the test set, losses on all splits, and the sparsity of each component."""
        splits = self.experiment.opened.splits
        values: dict[str, list[Value]] = {}
        for name in ("train", "validation", "test"):
            split: Samples = getattr(splits, name)
            if len(split):
                metrics = self.experiment.metrics if name == "test" else {}
                batches = self.stages.evaluation(split)
                values[name] = evaluate(model, self.experiment.objective, metrics, batches, self.device)
                _check_losses(name, values[name])
        rows = [
            self._row(
                split=name,
                task=value.task,
                metric=value.metric,
                value=value.value,
                unit=value.unit,
                higher_is_better=value.higher_is_better,
            )
            for name, measured in values.items()
            for value in measured
        ]
        return [*rows, *self._sparsities(model, masks), *self._costs()]

    def _sparsities(self, model: nn.Module, masks: Masks) -> list[Row]:
        """Return the sparsity of the whole network and of each component, measured on the masks.

        A network that was made small instead is measured against the dataset's own.
        """
        components = self.stages.components
        found = {WHOLE: tuple(components.users), **components.by_name()}
        reached = {name: sparsity(masks, names) if masks else 0.0 for name, names in found.items()}
        if self.experiment.small:
            outline = self.experiment.outline(MULTITASK)
            # It may have other layers than the small one: a ResNet has projections only where widths change.
            images = torch.zeros(1, 3, DISCOVERY_SIZE, DISCOVERY_SIZE, device="meta")
            whole = _counts(discover(outline, images), outline)
            reached = {name: 1 - count / whole[name] for name, count in _counts(components, model).items()}
        return [
            self._row(component=name, metric=SPARSITY, value=value, unit="fraction")
            for name, value in reached.items()
        ]

    def _costs(self) -> list[Row]:
        """Return what the run has taken, its dense training included even where another run had made it."""
        cost = sum((part.cost for part in parts(self.experiment)), kept_cost(self.folder))
        if self.experiment.needs_dense:
            cost += kept_cost(self.stages.dense_folder())
        if self.experiment.rewind:
            cost += kept_cost(self.stages.dense_folder(self.experiment.rewind))
        return [
            self._row(metric=name, value=float(getattr(cost, name)), unit=unit, higher_is_better=False)
            for name, unit in COSTS.items()
        ]

    def failure(self, status: str, reason: str) -> Row:
        """Return the one row of a run that did not end well."""
        return self._row(status=status, reason=" ".join(reason.split()))

    def _row(self, **measured: object) -> Row:
        """Return a row with everything that identifies this run; `measured` are the rest of its columns."""
        config, opened = self.config, self.experiment.opened
        settings = differences(self.experiment.model.settings, config.model_settings, "model.")
        return {
            "run": config.run_id,
            "status": FINISHED,
            "reason": "",
            "method": config.method.name,
            "settings": self.experiment.changes,
            "pretrained": config.method.pretrained,
            "paradigm": self.paradigm,
            "dataset": config.dataset,
            "data": opened.splits.origin,
            "stand_in": opened.stand_in,
            "protocol": config.protocol.name,
            "model": f"{config.model} ({settings})" if settings else config.model,
            "recipe": recipe_text(config.train),
            "finetune": recipe_text(config.finetune),
            "seed": config.seed,
            "sparsity": config.sparsity,
            "step": config.recipe.steps,
            "split": "",
            "task": "",
            "component": "",
            "metric": "",
            "value": None,
            "unit": "",
            "higher_is_better": None,
            **measured,
        }


def _check_losses(split: str, values: Sequence[Value]) -> None:
    """Raise DivergedError where a loss of the final network is not finite: its other numbers mean nothing."""
    for value in values:
        if value.metric == LOSS and not math.isfinite(value.value):
            task = f" of task '{value.task}'" if value.task else ""
            raise DivergedError(
                f"After training, the loss{task} on the split {split} is {value.value}. Lower train.lr, or look "
                "at the data."
            )


def _counts(components: Components, model: nn.Module) -> dict[str, int]:
    """Return the number of prunable weights of the whole `model` and of each of its components."""
    weights = prunable(model)
    names = {WHOLE: tuple(components.users), **components.by_name()}
    return {name: sum(weights[key].numel() for key in keys) for name, keys in names.items()}
