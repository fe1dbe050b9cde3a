"""Shards: files of the arrays of many images, mapped into memory, and the manifest that says what they hold."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtlprune_bench.data.formats import Array, naming
from mtlprune_bench.data.layouts import IMAGE, SPLITS, Place
from mtlprune_bench.errors import DataError
from mtlprune_bench.files import checksum, discard, write_atomic, write_text

MANIFEST = "manifest.json"
FORMAT = "mtlprune-bench shards"
VERSION = 1
"""Raised whenever shards mean something else, so that old ones are not read as new."""
SHARD_BYTES = 256 * 2**20
"""What a shard holds, unless a single image needs more."""
OPEN_SHARDS = 128
"""So many shards stay mapped in a process; each takes a file handle."""


class Damaged(Exception):
    """A folder does not hold what its manifest says."""


@dataclass(frozen=True)
class Form:
    """One array of each image: its shape, and the type in which its layout reads it."""

    shape: tuple[int, ...]
    source: str

    @classmethod
    def of(cls, array: Array) -> Form:
        """Return the form of `array`."""
        return cls(array.shape, array.dtype.name)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the type in which it is kept: float16 for floating-point numbers, else as it is read."""
        read = np.dtype(self.source)
        return np.dtype(np.float16) if read.kind == "f" else read

    @property
    def bytes(self) -> int:
        """Return what the array of one image takes."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Stack:
    """The arrays of one column, cut into shards of `rows` images.

    `note` is what its layout says of the column; `checksums` are the SHA-256 of the shards by file name.
    """

    forms: tuple[Form, ...]
    rows: int
    note: str
    checksums: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, arrays: Iterable[Array], note: str) -> Stack:
        """Return the empty stack of a column in which one image has these arrays."""
        forms = tuple(Form.of(array) for array in arrays)
        return cls(forms, max(1, SHARD_BYTES // max(1, sum(form.bytes for form in forms))), note)

    @property
    def bytes(self) -> int:
        """Return what the arrays of one image take."""
        return sum(form.bytes for form in self.forms)

    @property
    def lossy(self) -> bool:
        """Return whether numbers are kept less precisely than they are read."""
        return any(form.dtype != np.dtype(form.source) for form in self.forms)

    def shards(self, column: str, count: int) -> Iterator[tuple[range, dict[str, Form]]]:
        """Yield which of `count` images a set of shards holds, and the form in each file, by name."""
        for number, first in enumerate(range(0, count, self.rows)):
            names = (_name(column, array, number) for array in range(len(self.forms)))
            yield range(first, min(first + self.rows, count)), dict(zip(names, self.forms, strict=True))

    def places(self, folder: Path, column: str, row: int) -> tuple[Place, ...]:
        """Return where the arrays of image `row` are."""
        number, within = divmod(row, self.rows)
        return tuple(Place(folder / _name(column, array, number), within) for array in range(len(self.forms)))


def _name(column: str, array: int, number: int) -> str:
    return f"{column}-{array}-{number:05}.npy"


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds: the dataset, its layout, the images by split, and the columns.

    Row `i` of a column belongs to image `i` of those in `images`, each counted where it is first named.
    """

    dataset: str
    layout: str
    fingerprint: str
    images: Mapping[str, tuple[str, ...]]
    columns: Mapping[str, Stack]

    def rows(self) -> dict[str, int]:
        """Return the row of each image, by its name."""
        names = dict.fromkeys(name for split in SPLITS for name in self.images[split])
        return {name: row for row, name in enumerate(names)}

    def write(self, folder: Path) -> None:
        """Write the manifest in `folder`. Raises StoreError."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_text(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder of shards; None where there is none, or that of something else.

    Raises Damaged where it cannot be read, and DataError where another version of this package made it.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        if not (folder / _name(IMAGE, 0, 0)).exists():
            return None
        raise Damaged(f"{MANIFEST} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    if content.get("version") != VERSION:
        raise DataError(
            f"{path} is of version {content.get('version')}; this mtlprune-bench reads version {VERSION}. Remove "
            "the folder and prepare the images again."
        )
    try:
        return Manifest(
            **{name: str(content[name]) for name in ("dataset", "layout", "fingerprint")},
            images={split: tuple(map(str, content["images"][split])) for split in SPLITS},
            columns={column: _stack(values) for column, values in content["columns"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} is not as it was written: {type(error).__name__} {error}") from error


def _stack(values: Mapping[str, Any]) -> Stack:
    forms = tuple(Form(tuple(map(int, form["shape"])), np.dtype(form["source"]).name) for form in values["forms"])
    if int(values["rows"]) < 1:
        raise ValueError("a shard has no rows")
    return Stack(forms, int(values["rows"]), str(values["note"]), dict(values["checksums"]))


def damage(path: Path, form: Form, rows: int) -> str:
    """Return what is wrong with a shard, by its size, type and shape; "" for nothing. Its numbers are not read."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        size = path.stat().st_size
    except FileNotFoundError:
        return "it is missing"
    except Exception as error:  # NumPy has no common base for what damaged headers raise
        return str(error)
    if (array.dtype, array.shape) != (form.dtype, (rows, *form.shape)):
        return f"it holds {array.dtype} {array.shape} instead of {form.dtype} {(rows, *form.shape)}"
    wanted = array.offset + array.nbytes
    return "" if size == wanted else f"it has {size} bytes instead of {wanted}"


def changed(path: Path, wanted: str | None) -> str:
    """Return what is wrong with the bytes of a shard that should have the SHA-256 `wanted`; "" for nothing."""
    return "" if checksum(path) == wanted else "it has another checksum than when it was made"


def remove(path: Path, reason: str) -> None:
    """Set a damaged folder or file aside, with a warning. Raises DataError where it cannot be moved."""
    try:
        discard(path, Damaged(reason))
    except FileNotFoundError:
        pass  # Another process has set it aside.
    except OSError as error:
        raise DataError(
            f"{path} is damaged ({reason}) and cannot be moved: {error.strerror}. Remove it."
        ) from error


@dataclass(frozen=True)
class Writing:
    """The work on one column of `count` images: `read(row)` returns where one is kept, and its arrays."""

    folder: Path
    column: str
    stack: Stack
    count: int
    read: Callable[[int], tuple[Place, tuple[Array, ...]]]

    def run(self, pool: Executor, advance: Callable[[int], None]) -> Stack:
        """Write the shards that are missing or damaged, in order, and return the stack with all checksums.

        `advance` is called with the bytes that have become ready. Raises DataError where images are bad, or
        do not fit each other; StoreError where the disk is full.
        """
        checksums = {}
        for rows, shards in self.stack.shards(self.column, self.count):
            missing = [name for name, form in shards.items() if self._missing(name, form, len(rows))]
            if missing:
                self._write(rows, shards, pool, advance)
            else:
                advance(self.stack.bytes * len(rows))
            for name in shards:
                before = self.stack.checksums.get(name)
                checksums[name] = before if before and not missing else checksum(self.folder / name)
                if before not in (None, checksums[name]):
                    raise DataError(
                        f"{self.folder / name} was made again and is not what it was: the files of the dataset "
                        "have changed since. Remove the folder and prepare the images again."
                    )
        return replace(self.stack, checksums=checksums)

    def _missing(self, name: str, form: Form, rows: int) -> bool:
        """Return whether a shard must be written; what lies in its place, damaged, is set aside."""
        path = self.folder / name
        if not path.exists():
            return True
        if reason := damage(path, form, rows):
            remove(path, reason)
        return bool(reason)

    def _write(
        self, rows: range, shards: Mapping[str, Form], pool: Executor, advance: Callable[[int], None]
    ) -> None:
        """Write the shards of some images."""
        # In memory first: a mapped file that outgrows the disk would kill the process.
        buffers = [np.empty((len(rows), *form.shape), form.dtype) for form in shards.values()]
        for _ in pool.map(lambda row: self._fill([buffer[row - rows.start] for buffer in buffers], row), rows):
            advance(self.stack.bytes)
        for name, buffer in zip(shards, buffers, strict=True):
            write_atomic(self.folder / name, partial(_save, buffer))

    def _fill(self, kept: list[Array], row: int) -> None:
        """Read the arrays of an image into `kept`. Raises DataError where they do not fit."""
        place, arrays = self.read(row)
        forms = tuple(map(Form.of, arrays))
        if forms != self.stack.forms:
            raise DataError(
                f"{place} holds {_words(forms)}, the first image {_words(self.stack.forms)}: only images of one "
                "size and type can be prepared."
            )
        for narrow, array in zip(kept, arrays, strict=True):
            with np.errstate(over="ignore"):
                narrow[...] = array
            if array.dtype != narrow.dtype and (lost := np.isinf(narrow) & np.isfinite(array)).any():
                raise DataError(
                    f"{place} holds {array[lost][0]:.6g}, which {narrow.dtype} cannot: the largest number that "
                    f"can be prepared is {np.finfo(narrow.dtype).max:.0f}."
                )


def _words(forms: tuple[Form, ...]) -> str:
    return " and ".join(f"{form.source} of {' x '.join(map(str, form.shape))}" for form in forms)


def _save(array: Array, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def read_row(place: Place) -> Array:
    """Return the array at a row of a shard, in its mapped memory. Raises DataError where the shard is bad.

    The memory may be written to, as torch demands of what it takes without a copy; the file never changes.
    """
    with naming(place.path, "a shard of prepared images"):
        array: Array = mapped(place.path)[place.row]
    return array


@functools.lru_cache(maxsize=OPEN_SHARDS)
def mapped(path: Path) -> Array:
    """Return the arrays of a shard, mapped into memory."""
    return np.asarray(np.lib.format.open_memmap(path, mode="c"))
