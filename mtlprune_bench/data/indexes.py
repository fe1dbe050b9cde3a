"""Indexes: which images a folder holds, read from a file that lists them or from the folder's own listing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlprune_bench.data.layouts import IMAGE, Entry, Index, Place
from mtlprune_bench.errors import DataError

MOST_CHECKED = 50_000
"""Of an index with more files, so many are looked for, evenly spread, before a run; `data verify` looks for
all."""


def read_index(
    index: Path,
    columns: Sequence[str],
    tasks: Iterable[str],
    splits: Mapping[str, str],
    rename: Callable[[str], str] = str,
) -> Index:
    """Return the images that a JSON index lists, with what is needed for `tasks`.

    The index is an object of lists of lists of paths, relative to its folder; `columns` names what is at
    each place of the inner lists, "" for what is not used. `splits` says under which key a split is listed;
    one that is missing is empty. `rename(path)` is where a listed file really lies. Raises DataError where
    the index is damaged, or names a file outside its folder.
    """
    try:
        content = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{index} cannot be read as JSON: {error}. Replace the file.") from error
    if not isinstance(content, dict):
        raise DataError(f"{index} must be an object with {_keys(splits)}.")
    kept = (IMAGE, *tasks)
    listed = {
        split: tuple(
            {column: places for column, places in entry.items() if column in kept}
            for entry in _entries(index, content.get(key, []), key, columns, rename)
        )
        for split, key in splits.items()
    }
    return Index(train=listed["train"], test=listed["test"], validation=listed.get("validation", ()))


def _keys(splits: Mapping[str, str]) -> str:
    return " and ".join(f"'{key}'" for key in splits.values())


def _entries(
    index: Path, listed: Any, key: str, columns: Sequence[str], rename: Callable[[str], str]
) -> Iterator[Entry]:
    """Yield the entries of one split, checked, with resolved paths."""
    if not isinstance(listed, list):
        raise DataError(f"{index}: '{key}' must be a list of images.")
    folder = index.parent.resolve()
    resolved: dict[Path, Path] = {}
    for number, names in enumerate(listed):
        where = f"{index}: entry {number} of '{key}'"
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise DataError(f"{where} is {names!r}; it must be a list of paths.")
        if len(names) != len(columns):
            known = ", ".join(column or "(not used)" for column in columns)
            raise DataError(f"{where} has {len(names)} paths; it must have {len(columns)}: {known}.")
        entry: dict[str, tuple[Place, ...]] = {}
        for column, name in zip(columns, names, strict=True):
            if column:
                entry[column] = (*entry.get(column, ()), Place(inside(folder, rename(name), where, resolved)))
        yield entry


def inside(folder: Path, name: str, where: str, resolved: dict[Path, Path] | None = None) -> Path:
    """Return the file called `name`, links followed. Raises DataError where it lies outside `folder`.

    `resolved` remembers the folders that were resolved before: an index may list millions of files of a few.
    """
    resolved = {} if resolved is None else resolved
    try:
        if "\0" in name:
            raise ValueError("it has a null character")
        parent = (folder / name).parent
        if parent not in resolved:
            resolved[parent] = parent.resolve()
        path = resolved[parent] / Path(name).name
        path = path.resolve() if path.name in ("", "..") or path.is_symlink() else path
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} names {name!r}, which is no path: {error}.") from error
    if Path(name).is_absolute() or not path.is_relative_to(folder):
        raise DataError(f"{where} names {name}, which leads out of {folder}. Such files are never read.")
    return path


def numbered(folder: Path, suffix: str) -> list[str]:
    """Return the names, without `suffix`, of the files of `folder`, by number where they are numbers."""
    try:
        names = [path.name.removesuffix(suffix) for path in folder.iterdir() if path.name.endswith(suffix)]
    except OSError as error:
        raise DataError(f"Cannot look into {folder}: {error.strerror}. Make it readable.") from error
    return sorted(names, key=lambda name: (int(name), name) if name.isdecimal() else (-1, name))


def problems_of(root: Path, index: Index) -> list[str]:
    """Return what is wrong with an index as a whole: splits without images, and images that are listed twice."""
    problems = []
    for split, entries in index.splits().items():
        if not entries and split != "validation":
            problems.append(f"{root} lists no '{split}' images.")
        seen: set[tuple[Place, ...]] = set()
        for entry in entries:
            if entry[IMAGE] in seen:
                problems.append(f"{entry[IMAGE][0]} is listed twice in '{split}'. List it once.")
            seen.add(entry[IMAGE])
    return problems


def leaks(index: Index) -> list[Place]:
    """Return the images that are both in training and in test or validation."""
    trained = {entry[IMAGE] for entry in index.train}
    others = [entry[IMAGE] for entry in (*index.test, *index.validation)]
    return [image[0] for image in dict.fromkeys(others) if image in trained]


def missing_files(index: Index, most: int | None = MOST_CHECKED) -> list[Path]:
    """Return the files of an index that are not there; of more than `most`, those evenly spread are looked for."""
    entries = [entry for split in index.splits().values() for entry in split]
    stride = 1 if most is None or not entries else max(1, len(entries) * len(entries[0]) // most)
    paths = (place.path for entry in entries[::stride] for places in entry.values() for place in places)
    return [path for path in dict.fromkeys(paths) if not path.is_file()]


def check_index(root: Path, index: Index) -> None:
    """Raise DataError where an index is wrong or its files are missing; warn of images in two splits."""
    if problems := problems_of(root, index):
        raise DataError(problems[0])
    if missing := missing_files(index):
        raise DataError(
            f"{len(missing)} of the files that {root} should hold are missing; the first is {missing[0]}. "
            "Unpack the archive again."
        )
    if shared := leaks(index):
        warnings.warn(
            f"{root} lists images both for training and for test, {len(shared)} in all; the first is {shared[0]}. "
            "Results on them measure memory.",
            stacklevel=3,
        )
