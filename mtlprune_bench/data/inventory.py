"""Inventories: what a dataset is, where its files are, and how many of its images are there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from mtlprune_bench.adapters import Dataset, Files, Sample
from mtlprune_bench.data.find import find, prepared_copy, require
from mtlprune_bench.data.layouts import Layout, describe_classes
from mtlprune_bench.data.locate import Found, searched
from mtlprune_bench.data.photos import check_labels, open_photos
from mtlprune_bench.data.prepared import needed_bytes, prepared_at, prepared_folder, verify_prepared
from mtlprune_bench.data.reports import Problem
from mtlprune_bench.errors import DataError, UsageError
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.protocols import Protocol

Table = tuple[str, list[list[str]], list[str]]
"""A title, rows of texts, and headings."""


def with_files(registry: Registry, name: str) -> tuple[Dataset, Files]:
    """Return the dataset called `name` and its files. Raises UsageError where it is unknown or generated."""
    dataset: Dataset = registry.get("datasets", name)
    if dataset.files is None:
        others = [entry.name for entry in registry.of_kind("datasets") if entry.value.files is not None]
        raise UsageError(f"'{name}' has no files: its samples are generated. With files: {', '.join(others)}.")
    return dataset, dataset.files


def count(found: Found) -> dict[str, int]:
    """Return the number of images by split. Raises DataError where the index is bad."""
    return {split: len(entries) for split, entries in found.layout.index(found.root, ()).splits().items()}


def count_read(found: Found, limit: int | None) -> int | None:
    """Return how many images a verification reads, None where the index is too bad to tell."""
    try:
        return sum(size if limit is None else min(size, limit) for size in count(found).values())
    except DataError:
        return None


def require_originals(dataset: Dataset, named: str | None, layout: str | None) -> Found:
    """Return where the files of `dataset` are. Raises UsageError where these are prepared ones."""
    found = require(dataset, named, layout)
    if dataset.files is not None and prepared_at(dataset.files, found.root):
        raise UsageError(
            f"{found.root} holds images that are prepared already. Name the folder with the files of "
            f"{dataset.name}."
        )
    return found


def needed(dataset: Dataset, found: Found) -> int:
    """Return the bytes that the prepared images of `dataset` take. Raises DataError."""
    check_labels(dataset, found.layout)
    tasks = tuple(labels.task for labels in dataset.labels)
    return needed_bytes(found.layout, found.layout.index(found.root, tasks))


def free_bytes(folder: Path) -> int:
    """Return how much may be written to `folder`, which need not be there yet."""
    absolute = folder.resolve()
    return shutil.disk_usage(next(path for path in (absolute, *absolute.parents) if path.exists())).free


def prepared_problems(files: Files, found: Found, cache: Path) -> list[Problem]:
    """Return what is wrong with the prepared images of `found`, where there are any."""
    try:
        folder = found.root if prepared_at(files, found.root) else prepared_folder(files, found, cache)
    except DataError:
        return []  # Of a bad index nothing can have been prepared, and the verification has named it.
    return [Problem(folder, text) for text in verify_prepared(folder)] if folder.is_dir() else []


def generator_of(registry: Registry, dataset: Dataset) -> Dataset:
    """Return the dataset whose generated samples can take the place of those of `dataset`. Raises UsageError."""
    generator: Dataset | None = registry.get("datasets", dataset.stand_in) if dataset.stand_in else None
    if generator is None or generator.generate is None:
        raise UsageError(f"Nothing generates images for {dataset.name}: it names no generated stand-in.")
    return generator


def sample_of(dataset: Dataset, found: Found, protocol: Protocol, split: str, number: int) -> Sample:
    """Return sample `number` of a split, as runs read it. Raises DataError, and UsageError where there is none."""
    samples = getattr(open_photos(dataset, found.layout, found.root, protocol), split)
    if number >= len(samples):
        raise UsageError(f"There is no image {number} in '{split}': it has {len(samples)}, counted from 0.")
    sample: Sample = samples[number]
    return sample


def info_tables(dataset: Dataset, files: Files, named: str | None, layout: str | None, cache: Path) -> list[Table]:
    """Return what `mtlbench data info` prints: what the dataset is, and what of it is found."""
    facts = [
        ["what it is", dataset.description],
        ["licence", files.licence],
        ["images", ", ".join(f"{size} {split}" for split, size in files.sizes.items())],
    ]
    tasks = [
        [labels.task, str(labels.classes or ""), labels.unit, f"{dataset.loss_weights[labels.task]:g}"]
        for labels in dataset.labels
    ]
    layouts = [
        [layout.name, layout.description, _labels(layout), " x ".join(map(str, layout.size)), layout.source]
        for layout in files.layouts
    ]
    return [
        (dataset.name, facts, ["fact", "value"]),
        ("tasks", tasks, ["task", "classes", "unit", "loss weight"]),
        ("layouts", layouts, ["name", "what it is", "labels", "H x W", "where to get it"]),
        ("found", list(_here(dataset, files, named, layout, cache)), ["fact", "value"]),
    ]


def _labels(layout: Layout) -> str:
    """Return the labels of a layout, with the numbers of classes or units that it has them in."""
    columns = {task: describe_classes(column) for task, column in layout.columns.items()}
    return ", ".join(f"{task} ({choices})" if choices else task for task, choices in columns.items())


def _here(
    dataset: Dataset, files: Files, named: str | None, layout: str | None, cache: Path
) -> Iterator[list[str]]:
    """Yield the facts of what is found."""
    try:
        found = find(dataset, named, layout)
        if found is None:
            yield ["folder", f"none was found {searched(files, named)}"]
            return
        yield ["folder", str(found.root)]
        yield ["layout", found.layout.name]
        for split, size in count(found).items():
            if size or split in files.sizes:
                known = f" of {files.sizes[split]}" if split in files.sizes else ""
                yield [f"{split} images", f"{size}{known}"]
        check_labels(dataset, found.layout)
        yield ["prepared", _preparation(dataset, files, found, cache)]
    except DataError as error:
        yield ["problem", str(error)]


def _preparation(dataset: Dataset, files: Files, found: Found, cache: Path) -> str:
    """Return whether the images have been prepared, in words."""
    copy = prepared_copy(files, found, tuple(labels.task for labels in dataset.labels), cache)
    if copy is not None:
        return "yes, this folder" if copy.root == found.root else f"yes, in {copy.root}"
    return f"no; to train faster: mtlbench data prepare {dataset.name}"
