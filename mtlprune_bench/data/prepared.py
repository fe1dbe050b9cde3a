"""Prepared images: decoded once into shards, so that training reads what it needs without decoding files."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from mtlprune_bench.adapters import Dataset, Files
from mtlprune_bench.data.formats import Array, as_tensor
from mtlprune_bench.data.indexes import check_index
from mtlprune_bench.data.layouts import IMAGE, SPLITS, Column, Entry, Index, Layout, Pair, Place, fingerprint
from mtlprune_bench.data.locate import Found, chosen
from mtlprune_bench.data.photos import check_labels
from mtlprune_bench.data.shards import (
    Damaged,
    Form,
    Manifest,
    Stack,
    Writing,
    changed,
    damage,
    mapped,
    read_manifest,
    read_row,
    remove,
)
from mtlprune_bench.errors import DataError, StoreError
from mtlprune_bench.files import locked
from mtlprune_bench.protocols import Protocol
from mtlprune_bench.tasks import Labels


def prepared_folder(files: Files, found: Found, cache: Path) -> Path:
    """Return the folder in `cache` for the prepared images of `found`. Raises DataError for a bad index."""
    identity = fingerprint(found.root, found.layout.index(found.root, ()))
    return cache / "prepared" / f"{files.folders[0]}-{found.layout.name}-{identity}"


def needed_bytes(layout: Layout, index: Index) -> int:
    """Return what the shards of all columns of `index` take, from the arrays of its first image."""
    entries = [entry for split in index.splits().values() for entry in split]
    if not entries:
        return 0
    sizes = (Stack.of(_read(layout, column, entries[0]), "").bytes for column in entries[0])
    return sum(sizes) * len({entry[IMAGE] for entry in entries})


def _read(layout: Layout, column: str, entry: Entry) -> tuple[Array, ...]:
    """Return the arrays that `layout` stores of one image in `column`. Raises DataError."""
    if column == IMAGE:
        return (layout.image(*entry[IMAGE]),)
    return layout.columns[column].read(*entry[column])


def prepare(dataset: Dataset, found: Found, folder: Path, workers: int, advance: Callable[[int], None]) -> Path:
    """Write the images of `found`, with the labels of `dataset`, into shards in `folder`, and return it.

    What is there already is kept, so that a call that was stopped is simply made again. `workers` threads
    decode; `advance` is called with the number of bytes that have become ready, `needed_bytes` in all.
    Raises DataError where files are bad or do not fit each other, StoreError where the disk is too small.
    """
    files, layout, root = dataset.files, found.layout, found.root
    assert files is not None, "a layout was found, so there are files"
    check_labels(dataset, layout)
    tasks = tuple(labels.task for labels in dataset.labels)
    index = layout.index(root, tasks)
    check_index(root, index)
    entries = _distinct(root, index)
    names = {split: tuple(_name(root, entry) for entry in part) for split, part in index.splits().items()}
    wanted = Manifest(files.folders[0], layout.name, fingerprint(root, index), names, {})
    folder = folder.resolve()
    with locked(folder.with_name(f"{folder.name}.lock"), _tell_wait):
        manifest = _begin(folder, wanted)
        stacks = {
            column: manifest.columns.get(column) or _stack(found, column, entries[0]) for column in (IMAGE, *tasks)
        }
        _check_sizes(stacks, entries[0])
        _check_space(folder, stacks, len(entries))
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for column, stack in stacks.items():
                read = partial(_read_entry, layout, column, entries)
                done = Writing(folder, column, stack, len(entries), read).run(pool, advance)
                if done != manifest.columns.get(column):
                    manifest = replace(manifest, columns={**manifest.columns, column: done})
                    manifest.write(folder)
    return folder


def _read_entry(layout: Layout, column: str, entries: list[Entry], row: int) -> tuple[Place, tuple[Array, ...]]:
    return entries[row][column][0], _read(layout, column, entries[row])


def _tell_wait(owner: str) -> None:
    print(f"Waiting for process {owner}, which is preparing these images.", file=sys.stderr)


def _name(root: Path, entry: Entry) -> str:
    """Return the name of an image: its paths below `root`."""
    return "; ".join(str(replace(place, path=place.path.relative_to(root))) for place in entry[IMAGE])


def _distinct(root: Path, index: Index) -> list[Entry]:
    """Return the entries of an index, each image once. Raises DataError where one has several sets of labels."""
    entries: dict[tuple[Place, ...], Entry] = {}
    for part in index.splits().values():
        for entry in part:
            if entries.setdefault(entry[IMAGE], entry) != entry:
                raise DataError(f"{root} lists {entry[IMAGE][0]} twice, with different labels. List it once.")
    return list(entries.values())


def _begin(folder: Path, wanted: Manifest) -> Manifest:
    """Return the manifest of `folder`, `wanted` where it has none. Raises DataError where it has other files."""
    manifest = _read_manifest(folder)
    if manifest is not None and replace(manifest, columns={}) != wanted:
        raise DataError(
            f"{folder} was prepared from other images than those that layout '{wanted.layout}' lists now. Remove "
            "the folder, or choose another, and prepare the images again."
        )
    for left in folder.glob(".*.part"):  # by a process that was killed
        left.unlink()
    if manifest is None:
        if folder.is_file() or any(not path.name.startswith(".") for path in folder.glob("*")):
            raise DataError(f"{folder} holds files that are no prepared images. Choose an empty folder.")
        wanted.write(folder)
    return manifest or wanted


def _stack(found: Found, column: str, entry: Entry) -> Stack:
    """Return the form of a column that is not there yet."""
    tasks = () if column == IMAGE else (column,)
    return Stack.of(_read(found.layout, column, entry), found.layout.index(found.root, tasks).note)


def _check_sizes(stacks: Mapping[str, Stack], entry: Entry) -> None:
    """Raise DataError where the labels of the first image have another size than it."""
    size = stacks[IMAGE].forms[0].shape[-2:]
    for column, stack in stacks.items():
        for form in stack.forms:
            if form.shape[-2:] != size:
                raise DataError(
                    f"{entry[column][0]} has {_pixels(form)} pixels, but its image {entry[IMAGE][0]} has "
                    f"{_pixels(stacks[IMAGE].forms[0])}."
                )


def _pixels(form: Form) -> str:
    return " x ".join(map(str, form.shape[-2:]))


def _check_space(folder: Path, stacks: Mapping[str, Stack], count: int) -> None:
    """Raise StoreError where the shards that are missing take more than the disk has."""
    needed = sum(
        form.bytes * len(rows)
        for column, stack in stacks.items()
        for rows, shards in stack.shards(column, count)
        for name, form in shards.items()
        if not (folder / name).exists()
    )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"The images prepared in {folder} take {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free. "
            "Free some space or choose another folder."
        )


def _read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of `folder`, None where there is none; a damaged folder is set aside."""
    try:
        return read_manifest(folder)
    except Damaged as reason:
        remove(folder, str(reason))
        return None


def open_prepared(layout: Layout, folder: Path, tasks: tuple[str, ...]) -> Layout | None:
    """Return `layout`, reading from the shards in `folder`; None where these lack some of `tasks`.

    Its fingerprint is that of the files, with "-float16" where labels asked for are kept less precisely than
    they are read. Shards are checked by size, type and shape: damaged ones are set aside, with a warning.
    Raises DataError where another version of this package made them.
    """
    manifest = _read_manifest(folder)
    if manifest is None or manifest.layout != layout.name or not {IMAGE, *tasks} <= manifest.columns.keys():
        return None
    mapped.cache_clear()  # What was mapped before may have been set aside since.
    wrong = [
        (path, reason)
        for path, form, rows, _ in _shards(folder, manifest, (IMAGE, *tasks))
        if (reason := damage(path, form, rows))
    ]
    for path, reason in wrong:
        if path.exists():
            remove(path, reason)
        else:
            warnings.warn(f"{path} is missing; prepare the images again.", stacklevel=2)
    if wrong:
        return None
    columns = {
        task: replace(column, read=_read_rows, decode=partial(_decode, column, manifest.columns[task].forms))
        for task, column in layout.columns.items()
        if task in manifest.columns
    }
    return replace(layout, index=partial(_index, manifest), image=read_row, columns=columns)


def _shards(
    folder: Path, manifest: Manifest, columns: Iterable[str]
) -> Iterator[tuple[Path, Form, int, str | None]]:
    """Yield each shard of some columns: its path, the form of its arrays, their number, and its checksum."""
    count = len(manifest.rows())
    for column in columns:
        stack = manifest.columns[column]
        for rows, shards in stack.shards(column, count):
            for name, form in shards.items():
                yield folder / name, form, len(rows), stack.checksums.get(name)


def _read_rows(*places: Place) -> tuple[Array, ...]:
    return tuple(map(read_row, places))


def _decode(
    column: Column, forms: tuple[Form, ...], arrays: tuple[Array, ...], labels: Labels, protocol: Protocol
) -> Pair:
    """Decode arrays that were kept in a smaller type, in the type in which their layout reads them."""
    # By torch: NumPy takes twenty times as long to widen float16.
    read = tuple(
        as_tensor(array).to(getattr(torch, form.source)).numpy() if array.dtype != form.source else array
        for array, form in zip(arrays, forms, strict=True)
    )
    return column.decode(read, labels, protocol)


def _index(manifest: Manifest, root: Path, tasks: tuple[str, ...]) -> Index:
    """Return the images in the shards below `root`."""
    rows = manifest.rows()
    columns = {column: manifest.columns[column] for column in (IMAGE, *tasks)}
    splits = {
        split: tuple(
            {column: stack.places(root, column, rows[name]) for column, stack in columns.items()}
            for name in manifest.images[split]
        )
        for split in SPLITS
    }
    lossy = [column for column, stack in columns.items() if stack.lossy]
    notes = [stack.note for stack in columns.values()] + ([f"{', '.join(lossy)} as float16"] if lossy else [])
    return Index(
        **splits,
        note="; ".join(dict.fromkeys(filter(None, notes))),
        fingerprint=manifest.fingerprint + ("-float16" if lossy else ""),
    )


def prepared_at(files: Files, root: Path) -> tuple[Layout, Path] | None:
    """Return the layout that the shards in `root` were made from, and their folder, for `open_prepared`.

    None where `root` holds no shards, or those of another dataset. Raises DataError where they are damaged,
    UsageError where their layout is not known.
    """
    try:
        manifest = read_manifest(root)
    except Damaged as reason:
        raise DataError(f"{root} is damaged: {reason}. Prepare the images again.") from reason
    if manifest is None or manifest.dataset != files.folders[0]:
        return None
    return chosen(files, manifest.layout)[0], root.resolve()


def verify_prepared(folder: Path) -> list[str]:
    """Return what is wrong with the shards in `folder`, every byte of which is read."""
    try:
        manifest = read_manifest(folder)
    except Damaged as error:
        return [f"{folder}: {error}. Remove the folder and prepare the images again."]
    if manifest is None:
        return [f"{folder} holds no prepared images."]
    return [
        f"{path}: {reason}. Remove it and prepare the images again."
        for path, form, rows, wanted in _shards(folder, manifest, manifest.columns)
        if (reason := damage(path, form, rows) or changed(path, wanted))
    ]
