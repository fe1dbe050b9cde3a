"""Checks of datasets: what is opened, whether samples are as they have to be, and whether they can be learned."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from mtlprune_bench.adapters import Dataset, Sample, Samples, Splits
from mtlprune_bench.data.find import find
from mtlprune_bench.data.formats import as_tensor
from mtlprune_bench.runs.config import override
from mtlprune_bench.runs.opening import DataSettings, OpenDataset, open_dataset
from mtlprune_bench.runs.request import Request
from mtlprune_bench.tasks import Labels, Metric, Objective
from mtlprune_bench.testing.case import CPU, Case, plain, seed_generators, strange_generators
from mtlprune_bench.testing.checks import contract
from mtlprune_bench.testing.tiny import TinyNetwork
from mtlprune_bench.training.batches import Stream, evaluation_batches
from mtlprune_bench.training.evaluate import evaluate

LOOKED_AT = 4
"""Samples of each split that check_samples reads, from the first to the last."""

MISSING = "its files are not here; --set data.root=DIR names their folder"
PURE = "Let a sample depend on its index only: seed a generator by it, never draw from a global one."


def _opened(case: Case) -> OpenDataset | None:
    """Return the dataset, None where its files are missing."""
    dataset: Dataset = case.value
    data = override(DataSettings(), case.settings.get("data", {}), "data")
    if dataset.files is not None and find(dataset, data.root, data.layout) is None:
        return None
    opened = open_dataset(
        Request(method="", dataset=dataset.name, sparsity=0.0, seed=0, settings=case.settings), case.registry
    )
    return None if opened.stand_in else opened


def _parts(splits: Splits) -> Iterator[tuple[str, Samples]]:
    for name in ("train", "validation", "test"):
        yield name, getattr(splits, name)


def _chosen(samples: Samples, count: int = LOOKED_AT) -> list[int]:
    """Return up to `count` indices, spread over all."""
    return sorted({int(index) for index in np.linspace(0, len(samples) - 1, count)}) if len(samples) else []


@contract("datasets")
def check_opening(case: Case) -> str | None:
    """Tasks, model and loss weights are there; opened twice, the splits are as long and have one fingerprint."""
    dataset: Dataset = case.value
    tasks = [labels.task for labels in dataset.labels]
    for task in tasks:
        case.registry.get("tasks", task)
    case.registry.get("models", dataset.model)
    assert list(dataset.loss_weights) == tasks, (
        f"has loss weights for {list(dataset.loss_weights)} and labels for {tasks}. Give each task "
        "one, in the same order."
    )
    with strange_generators():
        first, second = _opened(case), _opened(case)
    if first is None or second is None:
        return MISSING
    assert first.splits.fingerprint == second.splits.fingerprint != "", (
        f"has the fingerprint '{first.splits.fingerprint}', then '{second.splits.fingerprint}'. Let it name the "
        "samples, the same each time, and others where the samples are others."
    )
    for (name, one), (_, two) in zip(_parts(first.splits), _parts(second.splits), strict=True):
        assert len(one) == len(two), f"has {len(one)} samples in {name}, then {len(two)}."
        assert len(one) or name == "validation", f"has no samples in {name}."
    return None


@contract("datasets")
def check_samples(case: Case) -> str | None:
    """Images and labels have the form and values of their kind, and are the same whenever they are read."""
    opened = _opened(case)
    if opened is None:
        return MISSING
    for name, samples in _parts(opened.splits):
        for index in _chosen(samples):
            with strange_generators():
                sample = samples[index]
                again = samples[index]
            where = f"sample {index} of {name}"
            _check_image(sample.image, where)
            assert plain(sample.image) == plain(again.image), f"has another image in {where} each time. {PURE}"
            for labels in opened.dataset.labels:
                _check_labels(sample, labels, where)
                same = plain(sample.targets[labels.task]) == plain(again.targets[labels.task])
                assert same, f"has other labels '{labels.task}' in {where} each time. {PURE}"
    return None


def _check_image(image: Tensor, where: str) -> None:
    assert image.dtype == torch.uint8, f"has an image of type {image.dtype} in {where}; it must be uint8."
    colours = image.ndim == 3 and image.shape[0] == 3
    assert colours, f"has an image of shape {tuple(image.shape)} in {where}; it must be RGB, [3, H, W]."


def _check_labels(sample: Sample, labels: Labels, where: str) -> None:
    """Assert that the target and the mask of one task are as its labels say."""
    assert labels.task in sample.labels, f"has no labels '{labels.task}' in {where}."
    target, mask = sample.targets[labels.task], sample.masks[labels.task]
    size, what = tuple(sample.image.shape[-2:]), f"labels '{labels.task}' in {where}"
    assert target.shape[-2:] == size == mask.shape, (
        f"has {what} of shape {tuple(target.shape)} with a mask of shape {tuple(mask.shape)}; the image has "
        f"{size[0]} x {size[1]} pixels."
    )
    assert mask.dtype == torch.bool, f"has {what} with a mask of type {mask.dtype}; it must be bool."
    if labels.classes:
        whole = target.dtype == torch.int64 and target.ndim == 2
        assert whole, (
            f"has {what} of type {target.dtype} and shape {tuple(target.shape)}; it must be int64 [H, W]."
        )
        valid = target[mask]
        inside = bool(((valid >= 0) & (valid < labels.classes)).all())
        assert inside, f"has {what} outside of 0 to {labels.classes - 1}. Let the mask leave such pixels out."
    else:
        real = target.dtype == torch.float32 and target.ndim == 3
        assert real, (
            f"has {what} of type {target.dtype} and shape {tuple(target.shape)}; it must be float32 [C, H, W]."
        )
        finite = bool(torch.isfinite(target[:, mask]).all())
        assert finite, f"has {what} that are not finite. Let the mask leave such pixels out."
    rows = size[0] // 2
    stored = (array[..., :rows, :] for array in sample.labels[labels.task].stored)
    part = as_tensor(sample.labels[labels.task].decode(*stored)[0])
    assert torch.equal(part, target[..., :rows, :]), (
        f"decodes a part of {what} to other values than the whole. Let decode() look at each pixel alone."
    )


@contract("datasets")
def check_splits(case: Case) -> str | None:
    """No image is in two splits, of those that are looked at."""
    opened = _opened(case)
    if opened is None:
        return MISSING
    seen: dict[bytes, tuple[str, int]] = {}
    for name, samples in _parts(opened.splits):
        for index in _chosen(samples, 8 * LOOKED_AT):
            before = seen.setdefault(plain(samples[index].image), (name, index))
            assert before[0] == name, f"has sample {before[1]} of {before[0]} in {name} too, as sample {index}."
    return None


@contract("datasets")
def check_learning(case: Case) -> str | None:
    """Each task's loss on a batch is finite and moves a network, and its metrics are finite."""
    opened = _opened(case)
    if opened is None:
        return MISSING
    dataset, splits = opened.dataset, opened.splits
    tasks = {labels.task: case.registry.get("tasks", labels.task) for labels in dataset.labels}
    objective = Objective(tasks, {one.task: one for one in dataset.labels}, dataset.loss_weights, opened.protocol)
    seed_generators(0)
    network = TinyNetwork(objective.channels(), 4)
    first = next(network.parameters())
    batch = Stream(splits, objective, dataclasses.replace(opened.train, batch=2, accumulate=1), seed=0)[0]
    for task, loss in objective.losses(network(batch.images), batch).items():
        gradient = torch.autograd.grad(loss, first, retain_graph=True, allow_unused=True)[0]
        moves = gradient is not None and _useful(gradient)
        assert moves, (
            f"has a loss of {loss.item():g} for '{task}', by which nothing can be learned. Look at its masks."
        )
    metrics = _metrics(case, objective.labels)
    batches = itertools.islice(evaluation_batches(splits.test, splits, objective, 2), 1)
    for value in evaluate(network, objective, metrics, batches, CPU):
        assert np.isfinite(value.value), (
            f"has {value.metric} = {value.value} for '{value.task}' on its test images."
        )
    return None


def _useful(gradient: Tensor) -> bool:
    return bool(torch.isfinite(gradient).all()) and bool(gradient.any())


def _metrics(case: Case, labels: Mapping[str, Labels]) -> dict[str, tuple[Metric, ...]]:
    return {
        task: tuple(metric for metric in case.registry.metrics_of(task) if metric.measures(asked))
        for task, asked in labels.items()
    }
