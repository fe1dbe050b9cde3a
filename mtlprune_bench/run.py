"""Runs: dense weights if the method needs them, masks, training, evaluation, rows. Nothing is done twice."""

from __future__ import annotations

import dataclasses
import itertools
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from mtlprune_bench.adapters import Samples
from mtlprune_bench.batches import Stream, evaluation_batches
from mtlprune_bench.checkpoint import load_masks, load_tensors, save_masks, save_tensors
from mtlprune_bench.components import Components, discover, prunable
from mtlprune_bench.config import Engine, describe
from mtlprune_bench.environment import environment, resolve_device
from mtlprune_bench.errors import DivergedError, MtlbenchError, StoreError
from mtlprune_bench.evaluate import Value, evaluate, total_loss
from mtlprune_bench.experiment import Experiment, differences, recipe_text
from mtlprune_bench.files import locked, write_text
from mtlprune_bench.masks import Masks, sparsity
from mtlprune_bench.observe import Observers, RunInfo
from mtlprune_bench.prune import make_masks, voters_of
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.registry import Registry
from mtlprune_bench.scorers import Scoring
from mtlprune_bench.seeds import derive
from mtlprune_bench.store import (
    DIVERGED,
    FAILED,
    FINISHED,
    SPARSITY,
    WHOLE,
    Row,
    Store,
    read_json,
    read_rows,
    write_json,
    write_rows,
)
from mtlprune_bench.tasks import Batch
from mtlprune_bench.train import BEST, CHECKPOINT, Training, Watch, load_weights, train, weights_of

START_MASKS = "start-masks.safetensors"
MASKS = "masks.safetensors"
WEIGHTS = "weights.safetensors"
DENSE = "dense training"
TRAIN = "training"
"""The two trainings that a run may have."""

DISCOVERY_SIZE = 64
"""Side in pixels of the image by which components are discovered."""


def execute(experiment: Experiment, store: Store, registry: Registry, engine: Engine) -> list[Row]:
    """Return the rows of `experiment`, from the store if it was run before, else by running it.

    A run that fails becomes one row with its reason, and may be tried again; its checkpoints stay. Raises
    StoreError where the store cannot be written, as no row can be kept then either.
    """
    folder = store.run_folder(experiment.config.run_id)
    with locked(folder / ".lock", _waiting(folder)):
        rows = read_rows(folder)
        if rows and all(row["status"] == FINISHED for row in rows):
            return rows
        run = Run(experiment, store, registry, engine)
        try:
            rows = run.rows()
        except StoreError:
            raise
        except DivergedError as error:
            rows = [run.failure(DIVERGED, str(error))]
        except Exception as error:
            write_text(folder / "error.log", traceback.format_exc())
            reason = str(error) if isinstance(error, MtlbenchError) else f"{type(error).__name__}: {error}"
            rows = [run.failure(FAILED, reason)]
        write_rows(folder, rows)
        run.observers("finished").run_finished(rows)
    return rows


def _waiting(folder: Path) -> Callable[[str], None]:
    return lambda owner: warnings.warn(
        f"Process {owner} is working on {folder.name}; waiting until it ends.", stacklevel=3
    )


@dataclass
class Run:
    """One run being executed."""

    experiment: Experiment
    store: Store
    registry: Registry
    engine: Engine

    def __post_init__(self) -> None:
        config = self.experiment.config
        self.config = config
        self.device = resolve_device(self.engine.device)
        self.folder = self.store.run_folder(config.run_id)

    @cached_property
    def components(self) -> Components:
        """Return which tasks use which weight; a model is built for it."""
        network = self.experiment.build_model(torch.device("cpu"))
        return discover(network, torch.zeros(1, 3, DISCOVERY_SIZE, DISCOVERY_SIZE))

    def observers(self, stage: str, steps: int = 0) -> Observers:
        """Return the observers of a stage of this run."""
        config = self.config
        info = RunInfo(
            id=config.run_id,
            method=config.method.name,
            dataset=config.dataset,
            model=config.model,
            sparsity=config.sparsity,
            seed=config.seed,
            folder=self.folder,
            stage=stage,
            steps=steps,
        )
        return Observers(self.registry, info)

    def rows(self) -> list[Row]:
        """Execute all stages and return what was measured."""
        self._write_facts()
        model = self.experiment.build_model(self.device)
        masks = self._train(model)
        rows = self._measure(model, masks)
        self.observers("evaluate").model_evaluated(self.config.recipe.steps, rows)
        return rows

    def _write_facts(self) -> None:
        """Write the configuration, the plan, and the environment of this session beside earlier ones."""
        write_json(self.folder / "config.json", describe(self.config))
        write_json(
            self.folder / "plan.json",
            {
                "steps": self.config.recipe.steps,
                "dense_stage": self.config.dense_key if self._needs_dense else None,
                "updates": [dataclasses.asdict(update) for update in self.experiment.plan],
            },
        )
        sessions = read_json(self.folder / "environment.json") or []
        write_json(self.folder / "environment.json", [*sessions, environment(self.device)])

    @property
    def _needs_dense(self) -> bool:
        """Return whether the run uses a trained dense network."""
        return self.config.method.start.pretrained or not self.experiment.plan

    def _train(self, model: nn.Module) -> Masks:
        """Bring `model` to its final weights and return its final masks, empty where it stays dense."""
        start = self.config.method.start
        if not self.experiment.plan:
            self._dense(model)
            return {}
        if start.train_from == "trained":
            self._dense(model)
        masks = self._start_masks(model)
        return self._stage(self.folder, TRAIN, model, self.config.recipe, masks)

    def _dense(self, model: nn.Module) -> None:
        """Give `model` the weights of the dense training that all runs with its recipe and seed share."""
        folder = self.store.stage_folder(self.config.dense_key)
        with locked(folder / ".lock", _waiting(folder)):
            self._stage(folder, DENSE, model, self.config.train, {})

    def _start_masks(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the masks before the first step; scores are computed once, however often the run is resumed."""
        first = next((update for update in self.experiment.plan if update.step == 0), None)
        if first is None:
            return {}
        masks = load_masks(self.folder / START_MASKS)
        if masks is None:
            scored = model
            if self.config.method.start.score_on == "trained" and self.config.method.start.train_from == "init":
                scored = self.experiment.build_model(self.device)
                self._dense(scored)
            masks = self._make_masks(scored, 0, first.sparsity, None)
            save_masks(self.folder / START_MASKS, masks)
        return {name: mask.to(self.device) for name, mask in masks.items()}

    def _make_masks(self, model: nn.Module, step: int, target: float, current: Masks | None) -> dict[str, Tensor]:
        """Return the masks of the update at `step`."""
        objective = self.experiment.objective
        weights = {name: weight for name, weight in prunable(model).items() if name in self.components.users}
        scoring = Scoring(
            model=model,
            weights=weights,
            voters=voters_of(self.config.method.scope, objective.weights, self.components),
            losses=lambda batch: objective.losses(model(batch.images), batch),
            batches=lambda count: self._batches(self.config.train, f"score at {step}", 0, count),
            seed=derive(self.config.seed, "score", step),
        )
        return make_masks(self.config.method, scoring, target, current)

    def _stage(self, folder: Path, name: str, model: nn.Module, recipe: Recipe, masks: Masks) -> Masks:
        """Train `model` in `folder`, or load what an earlier session trained; return its final masks."""
        finished = load_tensors(folder / WEIGHTS)
        stored = load_masks(folder / MASKS)
        pruned = name != DENSE
        if finished is not None and (stored is not None or not pruned):
            load_weights(model, finished[0])
            return stored if pruned and stored is not None else {}
        observers = self.observers(name, recipe.steps)
        observers.run_started()
        purpose = f"{name} batches"
        training = Training(
            model=model,
            objective=self.experiment.objective,
            recipe=recipe,
            batches=lambda step: self._batches(recipe, purpose, step, recipe.steps - step),
            plan=tuple(update for update in self.experiment.plan if pruned and update.step > 0),
            update=lambda step, target, current: self._make_masks(model, step, target, current),
            select=(lambda: self._test_loss(model)) if self.config.protocol.select == "test" else None,
            folder=folder,
            seed=derive(self.config.seed, name),
            checkpoint_seconds=self.engine.checkpoint_seconds,
            watch=Watch(observers.step_finished, observers.masks_updated),
        )
        masks = train(training, masks)
        if pruned:
            save_masks(folder / MASKS, masks)
        save_tensors(folder / WEIGHTS, weights_of(model), {"steps": recipe.steps})
        for leftover in (CHECKPOINT, BEST):
            (folder / leftover).unlink(missing_ok=True)
        return masks

    def _batches(self, recipe: Recipe, purpose: str, start: int, count: int) -> Iterable[Batch]:
        """Return training batches `start` to `start + count`, on the device; the same ones for every method."""
        stream = Stream(
            self.experiment.opened.splits,
            self.experiment.objective,
            recipe,
            seed=derive(self.config.seed, purpose),
            workers=self.engine.workers,
        )
        return (batch.to(self.device) for batch in itertools.islice(stream.start(start), count))

    def _evaluation(self, split: Samples) -> Iterable[Batch]:
        """Return the batches of a split, in order and unchanged."""
        splits, objective = self.experiment.opened.splits, self.experiment.objective
        return evaluation_batches(split, splits, objective, self.config.train.eval_batch)

    def _test_loss(self, model: nn.Module) -> float:
        """Return the loss on the test set, by which the released DiSparse code selects."""
        test = self.experiment.opened.splits.test
        return total_loss(model, self.experiment.objective, self._evaluation(test), self.device)

    def _measure(self, model: nn.Module, masks: Masks) -> list[Row]:
        """Return the rows: metrics on the test set, losses on all splits, and the sparsity of each component."""
        splits = self.experiment.opened.splits
        values: dict[str, list[Value]] = {}
        for name in ("train", "validation", "test"):
            split: Samples = getattr(splits, name)
            if len(split):
                metrics = self.experiment.metrics if name == "test" else {}
                batches = self._evaluation(split)
                values[name] = evaluate(model, self.experiment.objective, metrics, batches, self.device)
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
        parts = {WHOLE: tuple(self.components.users), **self.components.by_name()}
        for component, names in parts.items():
            reached = sparsity(masks, names) if masks else 0.0
            rows.append(self._row(component=component, metric=SPARSITY, value=reached, unit="fraction"))
        return rows

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
            "pretrained": config.method.start.pretrained,
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
