"""Photos: the samples of a dataset whose files lie on disk, in the layout that was found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mtlprune_bench.adapters import Dataset, Files, Labelling, Sample, Splits
from mtlprune_bench.data.formats import Array, as_tensor
from mtlprune_bench.data.indexes import check_index, leaks
from mtlprune_bench.data.layouts import IMAGE, Column, Entry, Index, Layout, Pair, describe_classes, fingerprint
from mtlprune_bench.data.locate import NOT_REAL
from mtlprune_bench.errors import DataError
from mtlprune_bench.protocols import Protocol
from mtlprune_bench.tasks import Labels

HOLD_OUT = 10
"""Each so many-th training image is held out where there is no validation set and the protocol needs one."""


@dataclass(frozen=True)
class Photos:
    """Images by their entries in the index, with the labels that were asked for."""

    entries: tuple[Entry, ...]
    layout: Layout
    labels: tuple[Labels, ...]
    protocol: Protocol

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        """Return image `index`. Raises DataError where one of its files is bad."""
        if not 0 <= index < len(self.entries):
            raise IndexError(f"There is no image {index} among {len(self.entries)}.")
        entry = self.entries[index]
        image = self.layout.image(*entry[IMAGE])
        labels = {}
        for asked in self.labels:
            column = self.layout.columns[asked.task]
            stored = column.read(*entry[asked.task])
            for place, array in zip(entry[asked.task], stored, strict=False):
                if array.shape[-2:] != image.shape[-2:]:
                    raise DataError(
                        f"{place} has {_size(array)} pixels, but its image {entry[IMAGE][0]} has {_size(image)}."
                    )
            labels[asked.task] = Labelling(stored, partial(_decode, column, asked, self.protocol))
        return Sample(as_tensor(image), labels)


def _decode(column: Column, labels: Labels, protocol: Protocol, *stored: Array) -> Pair:
    return column.decode(stored, labels, protocol)


def _size(array: Array) -> str:
    return " x ".join(map(str, array.shape[-2:]))


def check_labels(dataset: Dataset, layout: Layout) -> None:
    """Raise DataError where the layout does not have the labels of `dataset`."""
    for labels in dataset.labels:
        column = layout.columns.get(labels.task)
        if column is None:
            raise DataError(
                f"{dataset.name} needs labels for '{labels.task}', which layout '{layout.name}' does not have; it "
                f"has {', '.join(layout.columns)}."
            )
        wanted: object = labels.classes or labels.unit
        if wanted not in (column.classes or column.units or (wanted,)):
            needs = f"{wanted} classes" if labels.classes else f"{labels.task} in {wanted}"
            raise DataError(
                f"{dataset.name} needs {needs}; layout '{layout.name}' has {describe_classes(column)}. "
                "mtlbench ls datasets lists those with other labels."
            )


def open_photos(dataset: Dataset, layout: Layout, root: Path, protocol: Protocol) -> Splits:
    """Return the splits of `dataset` in `root`, where `locate` has found it: an absolute path without links.

    Where the files come without a validation set, a protocol that selects on the test set validates there,
    and any other holds out every tenth training image. Raises DataError where the layout lacks labels of the
    dataset, and where its index is bad.
    """
    files = dataset.files
    assert files is not None, "a layout was found, so there are files"
    check_labels(dataset, layout)
    index = layout.index(root, tuple(labels.task for labels in dataset.labels))
    check_index(root, index)
    train, validation, held_out = _held_out(index, protocol)
    return Splits(
        **{
            split: Photos(entries, layout, dataset.labels, protocol)
            for split, entries in (("train", train), ("validation", validation), ("test", index.test))
        },
        origin=_origin(files, layout, index, held_out),
        fingerprint=f"{files.folders[0]}-{layout.name}-{fingerprint(root, index)}",
        mean=files.mean,
        std=files.std,
        generated=NOT_REAL in index.note,
    )


def _held_out(index: Index, protocol: Protocol) -> tuple[tuple[Entry, ...], tuple[Entry, ...], int]:
    """Return the entries to train on, those to validate on, and how many were taken away from training."""
    if protocol.select == "test":
        return index.train, index.test, 0
    if index.validation:
        return index.train, index.validation, 0
    held = index.train[HOLD_OUT - 1 :: HOLD_OUT]
    kept = tuple(entry for number, entry in enumerate(index.train) if (number + 1) % HOLD_OUT)
    return kept, held, len(held)


def _origin(files: Files, layout: Layout, index: Index, held_out: int) -> str:
    """Return what the samples are, in words that belong beside every number made with them."""
    words = f"{files.title}, layout {layout.name}, {len(index.train)} training"
    words += f" ({held_out} of them held out)" if held_out else ""
    words += f", {len(index.validation)} validation" if index.validation else ""
    words += f" and {len(index.test)} test images"
    if shared := leaks(index):
        words += f", {len(shared)} OF THEM ALSO TRAINED ON"
    return words + (f"; {index.note}" if index.note else "")
