"""Finding: where a dataset's files are, as the user named them, in a usual place, or prepared."""

from __future__ import annotations

import os
from pathlib import Path

from mtlprune_bench.adapters import Dataset, Files
from mtlprune_bench.data.locate import Found, locate, searched
from mtlprune_bench.data.prepared import open_prepared, prepared_at, prepared_folder
from mtlprune_bench.errors import DataError


def find(dataset: Dataset, named: str | None, layout: str | None = None) -> Found | None:
    """Return where the files of `dataset` are, which may be prepared ones; None where none are found.

    `named` is the folder that the user named; without it that of MTLBENCH_DATA is searched, then the usual
    places. `layout` is the one to take. Raises DataError where a named folder is not there or holds a part of
    a layout, UsageError for an unknown layout.
    """
    files = dataset.files
    assert files is not None, "only datasets with files are looked for"
    if named and not Path(named).is_dir():
        raise DataError(f"There is no folder {named}. Name the one that holds the files of {dataset.name}.")
    root = named or os.environ.get("MTLBENCH_DATA")
    if root and (prepared := _prepared(dataset, files, Path(root), layout)):
        return prepared
    found = locate(files, Path(root) if root else None, layout)
    return locate(files, None, layout) if found is None and root and not named else found


def _prepared(dataset: Dataset, files: Files, root: Path, layout: str | None) -> Found | None:
    """Return the prepared images in `root`, None where there are none. Raises DataError where some are lacking."""
    found = prepared_at(files, root)
    if found is None or layout not in (None, found[0].name):
        return None
    opened = open_prepared(*found, tuple(labels.task for labels in dataset.labels))
    if opened is None:
        raise DataError(
            f"The images prepared in {root} lack some that {dataset.name} needs. Give the folder with their files "
            f"to mtlbench data prepare {dataset.name} --output {root}."
        )
    return Found(opened, found[1])


def require(dataset: Dataset, named: str | None, layout: str | None = None) -> Found:
    """Return where the files of `dataset` are. Raises DataError where they are not found."""
    found, files = find(dataset, named, layout), dataset.files
    if found is None:
        assert files is not None, "only datasets with files are looked for"
        raise DataError(
            f"The files of {dataset.name} were not found {searched(files, named)}. Name their folder by "
            f"--data-root; where to get them: mtlbench data info {dataset.name}."
        )
    return found


def prepared_copy(files: Files, found: Found, tasks: tuple[str, ...], cache: Path) -> Found | None:
    """Return the images of `found` that were prepared in `cache`, None where these lack some of `tasks`."""
    if prepared_at(files, found.root):
        return found
    folder = prepared_folder(files, found, cache)
    layout = open_prepared(found.layout, folder, tasks)
    return Found(layout, folder) if layout else None
