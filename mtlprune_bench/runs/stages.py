"""Stages: the trainings of a run, its scoring and its data. A finished stage is never run again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import time
import warnings
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtlprune_bench.adapters import Samples
from mtlprune_bench.files import locked
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.processes import present
from mtlprune_bench.pruning.components import Components, discover, prunable
from mtlprune_bench.pruning.masks import Masks
from mtlprune_bench.pruning.method import Method
from mtlprune_bench.pruning.prune import voters_of
from mtlprune_bench.pruning.scorers import Scores, Scoring
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.costs import Cost, keep_cost, kept_cost, peak_memory, reset_peak_memory
from mtlprune_bench.runs.experiment import Experiment
from mtlprune_bench.runs.observe import Observers, RunInfo
from mtlprune_bench.seeds import derive
from mtlprune_bench.store import LOCK, SPARSITY, WHOLE, Store, append_history
from mtlprune_bench.tasks import Batch
from mtlprune_bench.training.batches import Stream, evaluation_batches
from mtlprune_bench.training.checkpoint import (
    MASKS,
    SCORES,
    WEIGHTS,
    load_masks,
    load_scores,
    load_tensors,
    save_masks,
    save_scores,
    save_tensors,
)
from mtlprune_bench.training.evaluate import total_loss
from mtlprune_bench.training.numerics import Origin, emptied
from mtlprune_bench.training.state import load_weights, remove_checkpoints, weights_of
from mtlprune_bench.training.train import Reading, Training, Watch, train

DENSE = "dense training"
"""The training that all runs with the same data, model, recipe and seed share."""

SPARSITIES = "sparsity.jsonl"
"""What the sparsity of each component is while a training changes masks, in the training's folder."""

LOG = logging.getLogger(__name__)

DISCOVERY_SIZE = 64
"""Side in pixels of the image by which components are discovered."""


def waiting(folder: Path) -> Callable[[str], None]:
    """Return what warns that another process works in `folder`."""
    return lambda owner: warnings.warn(
        f"Process {owner} is working on {folder.name}; waiting until it ends.", stacklevel=3
    )


def _share(counts: Iterable[tuple[int, int]]) -> float:
    """Return the share of what is removed in all, of pairs of a part and a whole."""
    removed, total = map(sum, zip(*counts, strict=True))
    return removed / total


class Stages:
    """The stages of one run, on one device; of several `processes` the first alone touches the store."""

    def __init__(
        self, experiment: Experiment, store: Store, registry: Registry, engine: Engine, device: torch.device
    ) -> None:
        self.experiment = experiment
        self.config = experiment.config
        self.device = device
        self.processes = present()
        self.folder = store.run_folder(self.config.run_id)
        self._store = store
        self._registry = registry
        self._engine = engine

    @cached_property
    def components(self) -> Components:
        """Return which tasks use which weight; a network is built for it."""
        network = self.experiment.build_model(torch.device("cpu")).float()
        return discover(network, torch.zeros(1, 3, DISCOVERY_SIZE, DISCOVERY_SIZE))

    def observers(self, stage: str, steps: int = 0, folder: Path | None = None) -> Observers:
        """Return the observers of a stage of this run, which keeps its files in `folder`, if not in the run's."""
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
            stage_folder=folder or self.folder,
        )
        return Observers(self._registry, info, told=self.processes.first)

    def _holding(self, folder: Path) -> contextlib.AbstractContextManager[None]:
        """Return what holds the lock of `folder` for all processes, which wait for what the first reads there."""
        return locked(folder / LOCK, waiting(folder)) if self.processes.first else contextlib.nullcontext()

    def dense_folder(self, rewind: int = 0) -> Path:
        """Return the folder of the dense training, or of its steps before the one that is rewound to."""
        return self._store.stage_folder(self.experiment.rewind_key if rewind else self.config.dense_key)

    def dense(self, model: nn.Module, rewind: int = 0) -> None:
        """Give `model` the weights after the dense training, or those at the step that is rewound to.

        `model` has its initial weights. The first steps are made once more: to the bit the same on a CPU.
        """
        folder = self.dense_folder(rewind)
        recipe = self.config.train
        with self._holding(folder):
            if self.load(folder, model) is None:
                short = {"select": None} if rewind else {}
                recipe = dataclasses.replace(recipe, steps=rewind) if rewind else recipe
                self.train(folder, DENSE, model, recipe, {}, **short)

    def keep_scores(self, make: Callable[[], Scores]) -> None:
        """Make the scores that runs at several sparsities prune by, and keep them, unless they are kept."""
        folder = self._store.stage_folder(self.experiment.scores_key)
        with self._holding(folder):
            if self.processes.from_first(lambda: load_scores(folder / SCORES) is None):
                since = time.monotonic()
                reset_peak_memory(self.device)
                scores = make()
                self.keep_cost(folder, SCORES, time.monotonic() - since)
                if self.processes.first:
                    save_scores(folder / SCORES, scores)

    def kept_scores(self, folder: Path) -> Scores | None:
        """Return the scores kept for this run, if there are any; what they have cost is noted in `folder`."""
        kept = self._store.stage_folder(self.experiment.scores_key)
        shared = bool(self.experiment.scores_key)
        scores = self.processes.from_first(lambda: load_scores(kept / SCORES)) if shared else None
        if scores is None:
            return None
        if self.processes.first:
            keep_cost(folder, SCORES, kept_cost(kept))
        return {
            voter: {name: score.to(self.device) for name, score in own.items()} for voter, own in scores.items()
        }

    def load(self, folder: Path, model: nn.Module) -> Masks | None:
        """Give `model` what an earlier session trained in `folder` and return its masks; None: nothing yet."""
        finished, masks = self.processes.from_first(
            lambda: (load_tensors(folder / WEIGHTS), load_masks(folder / MASKS))
        )
        if finished is None or masks is None:
            return None
        if self.processes.first:
            remove_checkpoints(folder)  # of a process that was killed before it could
        load_weights(model, finished[0])
        return {name: mask.to(self.device) for name, mask in masks.items()}

    def train(self, folder: Path, name: str, model: nn.Module, recipe: Recipe, masks: Masks, **more: Any) -> Masks:
        """Train `model` in `folder` from the weights it has, and return its final masks; `more` is Training's."""
        observers = self.observers(name, recipe.steps, folder)
        observers.run_started()
        reset_peak_memory(self.device)
        changing = bool(more.get("plan") or more.get("learner"))
        self._tell_emptied(masks)

        def measured(step: int, read: Callable[[], Reading]) -> None:
            read = functools.cache(read)
            if changing and self.processes.first:
                append_history(folder / SPARSITIES, [{"step": step, "sparsity": self._sparsities(read())}])
            observers.training_measured(step, lambda: self._numbers(read()))

        training = Training(
            **{
                "model": model,
                "objective": self.experiment.objective,
                "recipe": recipe,
                "batches": lambda step: self.batches(recipe, f"{name} batches", step, recipe.steps - step),
                "select": (lambda: self._test_loss(model)) if self.config.protocol.select == "test" else None,
                "folder": folder,
                "seed": derive(self.config.seed, name),
                "checkpoint_seconds": self._engine.checkpoint_seconds,
                "watch": Watch(observers.step_finished, observers.masks_updated, measured),
                "processes": self.processes,
                "origin": Origin(self._stream(recipe, f"{name} batches").images, self._users),
                **more,
            }
        )
        trained = train(training, masks)
        if changing:
            self._tell_emptied(trained.masks)
        if self.processes.first:
            self.keep_cost(folder, name, trained.seconds)  # before the files by which the training counts as made
            save_masks(folder / MASKS, trained.masks)
            save_tensors(folder / WEIGHTS, weights_of(model), {"steps": recipe.steps})
            remove_checkpoints(folder)
        return trained.masks

    def _users(self, parameter: str) -> tuple[str, ...]:
        """Return the tasks that use the layer of a parameter, as far as it is known."""
        return self.components.users.get(f"{parameter.rpartition('.')[0]}.weight", ())

    def _tell_emptied(self, masks: Masks) -> None:
        """Say loudly which parts of the network `masks` leave no weight of; the training goes on."""
        for sentence in emptied(masks, self.components) if masks and self.processes.first else ():
            LOG.warning("%s: %s", self.config.run_id, sentence)

    def _sparsities(self, reading: Reading) -> dict[str, float]:
        """Return the sparsity of the whole network and of each component; none of a network without masks."""
        found = {WHOLE: tuple(reading.removed), **self.components.by_name()} if reading.removed else {}
        counts = {name: [reading.removed[layer] for layer in layers] for name, layers in found.items()}
        return {name: _share(counted) for name, counted in counts.items()}

    def _numbers(self, reading: Reading) -> dict[str, float]:
        """Return what observers are told of a reading, by name."""
        components = {f"{SPARSITY}/{name}": value for name, value in self._sparsities(reading).items()}
        layers = {f"layer-{SPARSITY}/{name}": _share([counts]) for name, counts in reading.removed.items()}
        losses = {"learning-rate": reading.learning_rate, "total-loss": reading.total}
        return losses | components | layers | dict(reading.learned)

    def keep_cost(self, folder: Path, name: str, seconds: float) -> None:
        """Write down the time and memory of a part of the work in `folder`."""
        if not self.processes.first:
            return
        keep_cost(folder, name, Cost(seconds=round(seconds, 3), peak_memory=round(peak_memory(self.device), 1)))

    def scoring(self, model: nn.Module, purpose: str, current: Batch | None = None) -> Scoring:
        """Return what scorers may look at; its batches and its seed depend on `purpose`."""
        objective, method = self.experiment.objective, self.config.method
        assert isinstance(method, Method), "only a Method has scorers"
        return Scoring(
            model=model,
            weights={name: weight for name, weight in prunable(model).items() if name in self.components.users},
            voters=voters_of(method.scope, objective.weights, self.components),
            losses=lambda batch, *temperature: objective.losses(model(batch.images), batch, *temperature),
            batches=self._scoring_batches(purpose),
            seed=derive(self.config.seed, purpose),
            current=current,
            processes=self.processes,
        )

    def _scoring_batches(self, purpose: str) -> Callable[[int], Iterable[Batch]]:
        """Return what gives the first so many batches to score on; one alone is kept, for scoring in rounds."""
        kept: list[Batch] = []

        def batches(count: int) -> Iterable[Batch]:
            if count != 1:
                return self.batches(self.config.train, purpose, 0, count)
            if not kept:
                kept.extend(self.batches(self.config.train, purpose, 0, 1))
            return kept

        return batches

    def batches(self, recipe: Recipe, purpose: str, start: int, count: int) -> Iterable[Batch]:
        """Return training batches `start` to `start + count`, on the device; the same ones for every method."""
        stream = self._stream(recipe, purpose)
        dtype = torch.float64 if recipe.double else None
        return (batch.to(self.device, dtype) for batch in itertools.islice(stream.start(start), count))

    def _stream(self, recipe: Recipe, purpose: str) -> Stream:
        """Return all training batches of a recipe and purpose."""
        return Stream(
            self.experiment.opened.splits,
            self.experiment.objective,
            recipe,
            seed=derive(self.config.seed, purpose),
            workers=self._engine.workers,
        )

    def evaluation(self, split: Samples) -> Iterable[Batch]:
        """Return the batches of a split, in order and unchanged."""
        splits, objective = self.experiment.opened.splits, self.experiment.objective
        batches = evaluation_batches(split, splits, objective, self.config.train.eval_batch, self.device)
        return (batch.to(self.device, torch.float64) for batch in batches) if self.config.train.double else batches

    def _test_loss(self, model: nn.Module) -> float:
        """Return the loss on the test set, by which the released DiSparse code selects."""
        test = self.experiment.opened.splits.test
        return total_loss(model, self.experiment.objective, self.evaluation(test), self.device)
