"""Opening: from a dataset's name to its samples, or those of its stand-in where its files are not found."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from mtlprune_bench.adapters import DataRequest, Dataset, Splits
from mtlprune_bench.data.find import find, prepared_copy
from mtlprune_bench.data.locate import searched
from mtlprune_bench.data.photos import open_photos
from mtlprune_bench.errors import DataError, unknown
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.protocols import PROTOCOLS, Protocol
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.runs.config import override
from mtlprune_bench.runs.request import Request


@dataclass(frozen=True)
class DataSettings:
    """Where data come from."""

    root: str | None = field(
        default=None, metadata={"help": "folder with the dataset's files; default $MTLBENCH_DATA"}
    )
    layout: str | None = field(
        default=None, metadata={"help": "how the files lie in it, where that is not clear; default: detected"}
    )
    require_real: bool = field(
        default=False, metadata={"help": "stop where the files are not found, instead of running a stand-in"}
    )


@dataclass(frozen=True, kw_only=True)
class OpenDataset:
    """A dataset whose samples can be read, or its stand-in, with the model and recipes that go with it."""

    dataset: Dataset
    splits: Splits
    protocol: Protocol
    stand_in: bool
    model: str
    train: Recipe
    finetune: Recipe


def cache_folder() -> Path:
    """Return where generated samples are kept: $MTLBENCH_CACHE, else the user's cache folder."""
    return Path(os.environ.get("MTLBENCH_CACHE") or platformdirs.user_cache_dir("mtlprune-bench"))


def open_dataset(request: Request, registry: Registry) -> OpenDataset:
    """Return the dataset that `request` names, or its stand-in where its files are not found.

    Raises UsageError for an unknown name and DataError where the files are wrong, or are missing though the
    user named their folder or required them.
    """
    dataset: Dataset = registry.get("datasets", request.dataset)
    protocol = _protocol(request.protocol)
    data = override(DataSettings(), request.settings.get("data", {}), "data")
    root = data.root or os.environ.get("MTLBENCH_DATA")
    asked = DataRequest(dataset.labels, protocol, Path(root) if root else None, cache_folder())
    if data.root and not asked.root.is_dir():  # type: ignore[union-attr]
        raise DataError(f"There is no folder {data.root}. Name the one that holds the files of {dataset.name}.")
    splits = _open_files(dataset, asked, data)
    if splits is not None:
        return OpenDataset(
            dataset=dataset,
            splits=splits,
            protocol=protocol,
            stand_in=splits.generated,
            model=dataset.model,
            train=dataset.train,
            finetune=dataset.finetune,
        )
    if data.root or data.require_real or not dataset.stand_in:
        place, source = f"in {root}", dataset.source
        if dataset.files:
            place = searched(dataset.files, data.root)
            source = f"Where to get them: mtlbench data info {dataset.name}."
        raise DataError(f"The files of {dataset.name} were not found {place}. {source}".strip())
    return _open_stand_in(dataset, asked, registry)


def _open_files(dataset: Dataset, asked: DataRequest, data: DataSettings) -> Splits | None:
    """Return the splits of `dataset`, None where its files are not found; prepared ones are preferred."""
    if dataset.files is None:
        assert dataset.open is not None, "a dataset has files or open"
        return dataset.open(asked)
    found = find(dataset, data.root, data.layout)
    if found is None:
        return None
    tasks = tuple(labels.task for labels in dataset.labels)
    found = prepared_copy(dataset.files, found, tasks, asked.cache) or found
    splits = open_photos(dataset, found.layout, found.root, asked.protocol)
    _ = splits.train[0].targets  # what is wrong with every image is said now, not when training starts
    return splits


def _open_stand_in(dataset: Dataset, asked: DataRequest, registry: Registry) -> OpenDataset:
    """Return generated samples with the tasks of `dataset`."""
    generator: Dataset = registry.get("datasets", dataset.stand_in)
    splits = generator.open(asked) if generator.open else None
    assert splits is not None, "a generated dataset needs no files"
    return OpenDataset(
        dataset=dataset,
        splits=splits,
        protocol=asked.protocol,
        stand_in=True,
        model=generator.model,
        train=generator.train,
        finetune=generator.finetune,
    )


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
