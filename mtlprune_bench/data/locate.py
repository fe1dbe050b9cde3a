"""Where a dataset's files are: in a folder that the user names, or in one of the usual places."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mtlprune_bench.adapters import Files
from mtlprune_bench.data.layouts import Index, Layout, fingerprint
from mtlprune_bench.errors import DataError, unknown

USUAL = ("data", "datasets", "~/data", "~/datasets", "/data", "/datasets")
"""Folders that are searched, for a folder named after the dataset, where the user names none."""
GENERATED = "GENERATED.txt"
"""A file that says that the images beside it are generated, and how."""
NOT_REAL = "GENERATED, not real"


@dataclass(frozen=True)
class Found:
    """A folder with a dataset's files, and the layout in which they are."""

    layout: Layout
    root: Path


def locate(files: Files, root: Path | None, layout: str | None = None) -> Found | None:
    """Return where the files are and in which layout; None where none are found.

    `root` is the folder or its parent; None stands for the usual places. `layout` names the one to take
    where a folder could be of several. Raises DataError where a named root holds a part of a layout: the
    nearest is said, and what is missing.
    """
    layouts = chosen(files, layout)
    if root is None:
        bases = [Path(place).expanduser() for place in USUAL]
        folders = [folder for base in bases for folder in _named(base, files)]
    else:
        folders = [root, *_named(root, files)]
    for folder in folders:
        for candidate in layouts:
            if not candidate.missing(folder):
                return Found(_marked(candidate, folder), folder.resolve())
    if root is not None:
        _tell_nearest(files, folders, layouts)
    return None


def searched(files: Files, named: str | None) -> str:
    """Return in words where files are looked for, which the user may have `named`."""
    root = named or os.environ.get("MTLBENCH_DATA")
    places = [f"in {root}"] if root else []
    places += [] if named else [f"as {' or '.join(files.folders)} in any of {', '.join(USUAL)}"]
    return ", or ".join(places)


def _marked(layout: Layout, folder: Path) -> Layout:
    """Return `layout`, its index noting that the images of `folder` are generated, where a file there says so."""
    marker = folder / GENERATED
    return replace(layout, index=partial(_generated, layout, marker.read_text())) if marker.is_file() else layout


def _generated(layout: Layout, words: str, root: Path, tasks: tuple[str, ...]) -> Index:
    index = layout.index(root, tasks)
    notes = [note for note in (index.note, f"{NOT_REAL} ({words.strip()})") if note]
    identity = f"{fingerprint(root, index)}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    return replace(index, note="; ".join(notes), fingerprint=identity)


def chosen(files: Files, layout: str | None) -> tuple[Layout, ...]:
    """Return the layouts, or the one called `layout`. Raises UsageError for an unknown name."""
    if layout is None:
        return files.layouts
    matching = tuple(candidate for candidate in files.layouts if candidate.name == layout)
    if not matching:
        raise unknown(f"layout of {files.title}", layout, [candidate.name for candidate in files.layouts])
    return matching


def _named(base: Path, files: Files) -> Iterator[Path]:
    """Yield the folders in `base` that are named after the dataset."""
    try:
        for path in sorted(base.iterdir()) if base.is_dir() else ():
            if path.name.lower().replace("_", "").replace("-", "") in files.folders and path.is_dir():
                yield path
    except OSError as error:
        raise DataError(f"Cannot look into {base}: {error.strerror}. Make it readable.") from error


def _tell_nearest(files: Files, folders: list[Path], layouts: tuple[Layout, ...]) -> None:
    """Raise DataError with the layout of which most is there, where anything is."""
    parts = [
        (len(present), -len(layout.missing(folder)), folder, layout, present)
        for folder in folders
        for layout in layouts
        if (present := layout.present(folder))
    ]
    if parts:
        _, _, folder, layout, present = max(parts, key=lambda part: part[:2])
        raise DataError(
            f"{folder} is no known layout of {files.title}. The nearest is '{layout.name}', "
            f"{layout.description}: there is {', '.join(present)}, but no {', '.join(layout.missing(folder))}. "
            f"Known: {', '.join(known.name for known in files.layouts)}."
        )
