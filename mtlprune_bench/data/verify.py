"""Verification: every file of a dataset is read, its labels are decoded, and all that is wrong is collected."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from mtlprune_bench.adapters import Dataset
from mtlprune_bench.data.formats import Array
from mtlprune_bench.data.indexes import leaks, missing_files, problems_of
from mtlprune_bench.data.layouts import IMAGE, Column, Entry, Index, Layout, Place
from mtlprune_bench.data.locate import Found
from mtlprune_bench.data.photos import check_labels
from mtlprune_bench.data.reports import Problem, Report, Tally
from mtlprune_bench.errors import DataError
from mtlprune_bench.protocols import STANDARD
from mtlprune_bench.tasks import Labels


def verify(
    dataset: Dataset, found: Found, workers: int, advance: Callable[[int], None], limit: int | None = None
) -> Report:
    """Read all files that `found` holds of the tasks of `dataset`, in `workers` threads.

    Labels are decoded under the standard protocol. Of each split at most `limit` images are read, evenly
    spread; `advance(1)` is called after each. Where a label is made of several files of which more than one is
    bad, the first is named. Raises DataError where the layout lacks labels of the dataset.
    """
    check_labels(dataset, found.layout)
    try:
        index = found.layout.index(found.root, tuple(labels.task for labels in dataset.labels))
    except DataError as error:
        problem = Problem(found.root, str(error))
        return Report(dataset=dataset, found=found, listed={}, tallies={}, problems=(problem,), warnings=())
    notes = _Notes([Problem(found.root, text) for text in problems_of(found.root, index)])
    if limit is not None:
        notes.problems += map(_missing, missing_files(index))
    check = partial(_check, labels=dataset.labels, layout=found.layout)
    tallies: dict[str, dict[str, Tally]] = {}
    for split, entries in index.splits().items():
        columns = {column: Tally() for column in (IMAGE, *(labels.task for labels in dataset.labels))}
        for read, noted in _in_threads(check, _spread(entries, limit), workers):
            columns |= {column: columns[column] + tally for column, tally in read.items()}
            notes.problems += noted.problems
            notes.warnings += noted.warnings
            advance(1)
        if entries:
            tallies[split] = columns
    notes.warnings += _doubts(dataset, found, index, tallies if limit is None else {})
    return Report(
        dataset=dataset,
        found=found,
        listed={split: len(entries) for split, entries in index.splits().items()},
        tallies=tallies,
        problems=tuple(dict.fromkeys(notes.problems)),
        warnings=tuple(dict.fromkeys(notes.warnings)),
        note=index.note,
    )


@dataclass
class _Notes:
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


Checked = tuple[dict[str, Tally], _Notes]


def _spread(entries: tuple[Entry, ...], limit: int | None) -> Iterable[Entry]:
    if limit is None or limit >= len(entries):
        return entries
    return (entries[number * len(entries) // limit] for number in range(limit))


def _in_threads(check: Callable[[Entry], Checked], entries: Iterable[Entry], workers: int) -> Iterator[Checked]:
    """Yield what `check` returns of each entry, in order; a few are under way at a time, so memory is bounded."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Checked]] = deque()
    try:
        for entry in entries:
            waiting.append(pool.submit(check, entry))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _check(entry: Entry, labels: tuple[Labels, ...], layout: Layout) -> Checked:
    """Return what was read of one image, by column, and what is wrong with its files."""
    read: dict[str, Tally] = {}
    notes = _Notes()
    size = None
    with _noting(notes, entry[IMAGE], layout):
        image = layout.image(*entry[IMAGE])
        size = image.shape[-2:]
        read[IMAGE] = replace(_tally(entry[IMAGE], (image,)), low=float(image.min()), high=float(image.max()))
    for asked in labels:
        places = entry[asked.task]
        with _noting(notes, places, layout):
            stored = layout.columns[asked.task].read(*places)
            _check_sizes(places, stored, entry[IMAGE][0], size)
            read[asked.task] = _decoded(places, stored, asked, layout.columns[asked.task])
            if not read[asked.task].valid:
                text = f"{places[0]} has no pixel with a label. It is trained and measured on nothing."
                notes.warnings.append(Problem(places[0].path, text))
    return read, notes


@contextmanager
def _noting(notes: _Notes, places: tuple[Place, ...], layout: Layout) -> Iterator[None]:
    """Note what goes wrong with `places` as a problem: all that are missing, else what reading them raises."""
    try:
        yield
    except Exception as error:
        missing = [_missing(place.path) for place in places if not place.path.is_file()]
        text = str(error)
        if not isinstance(error, DataError):
            text = f"{places[0]}: {type(error).__name__}: {error}. This is a bug in layout '{layout.name}'."
        named = next((place.path for place in places if str(place.path) in text), places[0].path)
        notes.problems += missing or [Problem(named, text)]


def _missing(path: Path) -> Problem:
    return Problem(path, f"{path} is missing. Unpack the archive again.")


def _check_sizes(
    places: tuple[Place, ...], stored: tuple[Array, ...], image: Place, size: tuple[int, ...] | None
) -> None:
    """Raise DataError where labels are not as large as their image, of which `size` is None where it is bad."""
    for place, array in zip(places, stored, strict=False):
        if size is not None and array.shape[-2:] != size:
            raise DataError(
                f"{place} has {_times(array.shape[-2:])} pixels, but its image {image} has {_times(size)}. "
                "Replace one of them."
            )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _tally(places: tuple[Place, ...], stored: tuple[Array, ...]) -> Tally:
    """Return the files of one image's column, and the shapes and types of its arrays."""
    own = [place.path for place in places if place.row is None]
    return Tally(
        images=1,
        files=len(own),
        bytes=sum(path.stat().st_size for path in own),
        shared={place.path: place.path.stat().st_size for place in places if place.row is not None},
        shapes=Counter(_times(array.shape) for array in stored),
        types=Counter(str(array.dtype) for array in stored),
    )


def _decoded(places: tuple[Place, ...], stored: tuple[Array, ...], asked: Labels, column: Column) -> Tally:
    """Return the tally of one image's labels. Raises DataError where valid ones are no numbers or no classes."""
    target, mask = column.decode(stored, asked, STANDARD)
    values = target[..., mask]
    tally = replace(_tally(places, stored), pixels=mask.size, valid=int(mask.sum()))
    if not values.size:
        return tally
    if not np.isfinite(values).all():
        raise DataError(f"{places[0]} holds labels that are no finite numbers. Replace the file.")
    low, high = float(values.min()), float(values.max())
    if asked.classes and not 0 <= low <= high < asked.classes:
        raise DataError(
            f"{places[0]} holds classes {low:g} to {high:g}; they must be 0 to {asked.classes - 1}. Replace the "
            "file."
        )
    pixels = np.bincount(values) if asked.classes else ()
    counts = Counter({number: int(count) for number, count in enumerate(pixels) if count})
    return replace(tally, low=low, high=high, classes=counts)


def _doubts(
    dataset: Dataset, found: Found, index: Index, tallies: Mapping[str, Mapping[str, Tally]]
) -> Iterator[Problem]:
    """Yield warnings of what a part of a dataset may well have: other numbers of images, classes never seen."""
    for place in leaks(index):
        text = f"{place} is both in training and in test or validation. Results on it measure memory."
        yield Problem(place.path, text)
    known = dataset.files.sizes if dataset.files else {}
    for split, size in known.items():
        if (listed := len(index.splits()[split])) != size:
            text = f"{found.root} has {listed} '{split}' images; all of {dataset.name} are {size}."
            yield Problem(found.root, text)
    for asked in dataset.labels if tallies else ():
        seen = sum((columns[asked.task].classes for columns in tallies.values()), Counter[int]())
        if never := [str(number) for number in range(asked.classes) if number not in seen]:
            text = f"{found.root} has no pixel of {len(never)} of the {asked.classes} classes: {', '.join(never)}."
            yield Problem(found.root, text)
