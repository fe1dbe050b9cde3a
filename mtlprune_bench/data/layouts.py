"""Layouts: the ways in which a dataset's files lie in a folder, and what their numbers mean."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlprune_bench.data.formats import Array
from mtlprune_bench.protocols import Protocol
from mtlprune_bench.tasks import Labels

if TYPE_CHECKING:
    from mtlprune_bench.adapters import Sample

IMAGE = "image"
"""The column of the images; the others are named after their tasks."""
SPLITS = ("train", "validation", "test")

Pair = tuple[Array, Array]
"""A target and its mask."""


@dataclass(frozen=True, order=True)
class Place:
    """Where an array is kept: a file, or a row of a file that holds many."""

    path: Path
    row: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.row is None else f"{self.path}, image {self.row}"


Entry = Mapping[str, tuple[Place, ...]]
"""One image of an index: by column, where its arrays are kept."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """How a layout keeps the labels of one task.

    `read(*places)` returns the arrays of one image as they are stored, each [..., H, W], their values
    checked; it raises DataError with the path where they are bad. `decode(arrays, labels, protocol)` turns
    them into the task's target, [..., H, W] in the units of `labels`, and its mask, bool [H, W]; it does so
    pixel by pixel, so that it may be given any part of the image. `classes` are the numbers of classes and
    `units` the units that it can decode to.
    """

    read: Callable[..., tuple[Array, ...]]
    decode: Callable[[tuple[Array, ...], Labels, Protocol], Pair]
    classes: tuple[int, ...] = ()
    units: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a folder holds: the entries of each split, and what is to be known about all of them.

    Without `validation` some training images are held out where the protocol needs them. `note` is a clause
    for the description of the data, such as "normals computed from depth". `fingerprint` identifies the files
    that the entries were made from, where these are not their own.
    """

    train: tuple[Entry, ...]
    test: tuple[Entry, ...]
    validation: tuple[Entry, ...] = ()
    note: str = ""
    fingerprint: str = ""

    def splits(self) -> dict[str, tuple[Entry, ...]]:
        """Return the entries by split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which a dataset's files lie in a folder.

    `source` says where to get them. `signs` are the paths in the folder, with * for any name, by all of which
    the layout is recognised; `hints` are others, by which the nearest layout is found where none is.
    `index(root, tasks)` lists the images with what is needed for `tasks`, without opening them; it raises
    DataError where its own files are bad. `image(*places)` returns RGB uint8 [3, H, W], `columns` has the tasks'
    labels. `size` is (H, W) of its images as they are read. `write(root, splits)` writes samples, by split, in
    this layout: their labels are those of `writes`, in canonical form.
    """

    name: str
    description: str
    source: str
    signs: tuple[str, ...]
    index: Callable[[Path, tuple[str, ...]], Index]
    image: Callable[..., Array]
    columns: Mapping[str, Column]
    size: tuple[int, int]
    write: Callable[[Path, Mapping[str, Sequence[Sample]]], None]
    writes: tuple[Labels, ...]
    hints: tuple[str, ...] = field(default=())

    def missing(self, root: Path) -> list[str]:
        """Return the signs that `root` does not have."""
        return [sign for sign in self.signs if not _present(root, sign)]

    def present(self, root: Path) -> list[str]:
        """Return the signs and hints that `root` has."""
        return [name for name in (*self.signs, *self.hints) if _present(root, name)]


def _present(root: Path, sign: str) -> bool:
    return next(root.glob(sign), None) is not None if "*" in sign else (root / sign).exists()


def fingerprint(root: Path, index: Index) -> str:
    """Return 16 hexadecimal digits that identify the entries of `index` by their paths below `root`."""
    if index.fingerprint:
        return index.fingerprint
    digest = hashlib.sha256()
    for split, entries in index.splits().items():
        for entry in entries:
            digest.update(f"\n{split}".encode())
            for place in entry[IMAGE]:
                digest.update(f" {place.path.relative_to(root).as_posix()} {place.row}".encode())
    return digest.hexdigest()[:16]


def describe_classes(column: Column) -> str:
    """Return the numbers of classes or the units that a column can decode to, in words; "" for neither."""
    choices: Sequence[Any] = column.classes or column.units
    return " or ".join(str(choice) for choice in choices)
