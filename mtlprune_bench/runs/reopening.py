"""Reopening: from the folder of a run back to what it was made from, and to the network that it left."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlprune_bench.errors import StoreError, UsageError
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.pruning.learned import LearnedMethod
from mtlprune_bench.pruning.masks import Masks
from mtlprune_bench.runs.config import describe
from mtlprune_bench.runs.experiment import Experiment, prepare
from mtlprune_bench.runs.opening import open_dataset
from mtlprune_bench.runs.request import Request, merge_settings
from mtlprune_bench.store import CONFIG, REQUEST, Store, read_json
from mtlprune_bench.tasks import enlarge
from mtlprune_bench.training.batches import evaluation_batches
from mtlprune_bench.training.checkpoint import MASKS, WEIGHTS, load_masks, load_tensors
from mtlprune_bench.training.state import load_weights

ELSEWHERE = ("engine", "runner")
"""Sections of settings that say how a run is executed, and nothing of what it is."""


def asked_for(experiment: Experiment) -> dict[str, Any]:
    """Return, in names and settings, what was asked for, as `reopen` reads it."""
    asked = dataclasses.asdict(experiment.request)
    asked["settings"] = {name: value for name, value in asked["settings"].items() if name not in ELSEWHERE}
    return asked


def reopen(folder: Path, registry: Registry, data_root: str | None = None) -> Experiment:
    """Return the experiment of the run in `folder`; `data_root` is where its data are now, None as they were.

    Raises UsageError where the folder does not say what was asked for, or where that would be another run today,
    and DataError where its data are missing.
    """
    asked = read_json(folder / REQUEST)
    if not isinstance(asked, Mapping):
        raise UsageError(
            f"{folder} has no {REQUEST}: it was made by an earlier version. Give the mtlbench run or suite run "
            "that made it once more, which writes the file and runs nothing again."
        )
    try:
        request = Request(**asked)
    except TypeError as error:
        raise UsageError(f"{folder / REQUEST} is of another version of mtlprune-bench: {error}.") from error
    if data_root is not None:
        moved = merge_settings(request.settings, {"data": {"root": data_root}})
        request = dataclasses.replace(request, settings=moved)
    experiment = prepare(request, registry, open_dataset(request, registry))
    if experiment.config.run_id != folder.name:
        before, now = read_json(folder / CONFIG) or {}, describe(experiment.config)
        changed = sorted(name for name in {**before, **now} if before.get(name) != now.get(name))
        raise UsageError(
            f"{folder.name} cannot be rebuilt: what it was made from would be {experiment.config.run_id} now, "
            f"with another {' and '.join(changed) or 'name'}. Load its plugins by --plugin and name its data by "
            "--data-root, or use the version of mtlprune-bench that made it."
        )
    return experiment


def final_network(experiment: Experiment, store: Store) -> tuple[nn.Module, Masks]:
    """Return the network that a run left, on the CPU and in eval mode, and its masks, empty if dense.

    Raises StoreError where the run has not come to its end, or its weights and masks contradict each other.
    """
    config = experiment.config
    own = isinstance(config.method, LearnedMethod) or experiment.plan
    folder = store.run_folder(config.run_id) if own else store.stage_folder(config.dense_key)
    stored, masks = load_tensors(folder / WEIGHTS), load_masks(folder / MASKS)
    if stored is None or masks is None:
        raise StoreError(
            f"There are no final weights in {folder}. Give the mtlbench run or suite run that made "
            f"{config.run_id} once more: it goes on where it stopped. Where the run is finished and lost them, "
            "mtlbench store repair --again comes first."
        )
    if wrong := [name for name, mask in masks.items() if stored[0][name][~mask].any()]:
        raise StoreError(
            f"{folder / WEIGHTS} does not fit {MASKS}: removed weights of {wrong[0]} are not zero. Move the "
            "folder away and run again."
        )
    network = experiment.build_model(torch.device("cpu"))
    load_weights(network, stored[0])
    return network.eval(), masks


def first_image(experiment: Experiment, size: tuple[int, int] | None = None) -> Tensor:
    """Return the first image of the test set as the network gets it [1, 3, H, W], resized to `size` = (H, W)."""
    splits, objective = experiment.opened.splits, experiment.objective
    batch = next(evaluation_batches(splits.test, splits, objective, 1))
    images = batch.images.double() if experiment.config.train.double else batch.images
    return images if size is None else enlarge(images, size, "bilinear")
