"""Merging: runs and stages of other stores brought into one; the better of two stays, and clashes are named."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import safetensors

from mtlprune_bench.errors import StoreError, UsageError
from mtlprune_bench.files import locked
from mtlprune_bench.runs.config import digest
from mtlprune_bench.runs.integrity import check
from mtlprune_bench.runs.leftovers import (
    MERGING,
    REPLACED,
    InUseError,
    in_work,
    is_finished,
    refuse,
    stage_folders,
)
from mtlprune_bench.store import CONFIG, LOCK, Store, read_json, read_rows
from mtlprune_bench.training.checkpoint import DAMAGED, HEADER, MASKS, SCORES, WEIGHTS
from mtlprune_bench.training.state import CHECKPOINT

End = Literal["copied", "equal", "replaced", "kept", "clash", "skipped"]
ENDS: tuple[End, ...] = get_args(End)
"""What becomes of a run or stage of another store: `kept` is the store's own, as it has come further."""

VARYING = ("seconds", "peak_memory")
"""Metrics that differ whenever a run is made again."""

Progress = tuple[bool, int, int]
"""Whether a run or stage is finished, how many trainings are, and the step of the checkpoint of the next."""


@dataclass(frozen=True)
class Merged:
    """What became of a run or a stage (`kind`) of another store, and why.

    `differences` are what clashes: what it is, its value here and its value there.
    """

    name: str
    kind: Literal["run", "stage"]
    end: End
    note: str = ""
    differences: tuple[tuple[str, str, str], ...] = ()


def merge(folders: Sequence[Path], store: Store, dry_run: bool = False) -> Iterator[tuple[Path, Merged]]:
    """Bring the runs and stages of the stores in `folders` into `store`; yield for each what becomes of it.

    Copies appear whole or not at all; what they replace is kept in the folder `replaced`. With `dry_run` nothing
    is written. Raises UsageError, before anything is done, where one of `folders` is no other store, and
    StoreError where something cannot be read or written.
    """
    for folder in folders:
        _check(folder, store)
    if not dry_run:
        store.check_writable()
    return ((folder, merged) for folder in folders for merged in _merge_store(Store(folder), store, dry_run))


def _check(folder: Path, store: Store) -> None:
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}. Name folders that mtlbench run had as its --store.")
    if folder.resolve() == store.folder.resolve():
        raise UsageError(f"{folder} is the store itself. Name others to merge into it, or another --store.")
    if not Store(folder).runs() and not stage_folders(Store(folder)):
        raise UsageError(f"{folder} is no store: there are no runs in it. Name the folder that contains theirs.")


def _merge_store(source: Store, store: Store, dry_run: bool) -> Iterator[Merged]:
    """Bring the runs and then the stages of `source` into `store`."""
    for folder in source.runs():
        if digest(read_json(folder / CONFIG)) != folder.name.rpartition("-")[2]:
            note = "its name does not end in the hash of its config.json: renamed, or changed by hand"
            yield Merged(folder.name, "run", "skipped", note)
            continue
        merged = _bring(folder, store.run_folder(folder.name), store, dry_run)
        yield Merged(folder.name, "run", *merged)
    for folder in stage_folders(source):
        merged = _bring(folder, store.stage_folder(folder.name), store, dry_run)
        yield Merged(folder.name, "stage", *merged)


def _bring(
    source: Path, target: Path, store: Store, dry_run: bool
) -> tuple[End, str, tuple[tuple[str, str, str], ...]]:
    """Bring the folder of one run or stage to `target`; return the end, the note and the differences."""
    try:
        for folder in (source, target):
            if in_work(folder):
                raise InUseError(f"a process is working on it in {folder.parent}")
        if link := next((path for path in source.rglob("*") if path.is_symlink()), None):
            # What it leads to may be no result at all, and would be copied.
            return "skipped", f"{link} is a link; put the file itself in its place", ()
        if not target.exists():
            _check_whole(source)
            if not dry_run:
                _copy(source, target, store)
            return "copied", "", ()
        theirs, ours = _progress(source), _progress(target)
        if theirs[0] and ours[0]:
            differences = _differences(target, source)
            return ("clash", "", differences) if differences else ("equal", "", ())
        if theirs <= ours:
            return ("equal" if theirs == ours else "kept"), "", ()
        _check_whole(source)
        aside = _place_aside(target, store)
        if not dry_run:
            _replace(source, target, aside, store)
        return "replaced", f"what was there had not come as far; it is kept as {aside}", ()
    except (InUseError, DamagedError) as error:
        return "skipped", str(error), ()
    except OSError as error:
        raise StoreError(f"Cannot merge {source} into {store.folder}: {error.strerror or error}.") from error


class DamagedError(Exception):
    """A file of a run or stage is not as it was written."""


def _check_whole(source: Path) -> None:
    """Raise DamagedError where a file in `source` is not as it was written: it must not replace good ones."""
    found = check(source, "stage" if source.parent.name == "stages" else "run", ours=True)
    for file in found.damaged:
        raise DamagedError(
            f"{file.path.relative_to(source)} is damaged ({file.problem}); mtlbench store repair --store "
            f"{source.parent} moves it aside, to be made again"
        )


def _progress(folder: Path) -> Progress:
    """Return how far the run or stage in `folder` has come."""
    files = {path.name for path in folder.glob("*.safetensors")}
    is_stage = folder.parent.name == "stages"
    finished = (SCORES in files or {WEIGHTS, MASKS} <= files) if is_stage else is_finished(folder)
    trainings = sum(1 for _ in folder.rglob(WEIGHTS))
    return finished, trainings, max(map(_step, folder.rglob(CHECKPOINT)), default=0)


def _step(checkpoint: Path) -> int:
    """Return the step of a checkpoint, 0 of one that cannot be read."""
    try:
        with safetensors.safe_open(checkpoint, framework="pt") as file:
            _, facts = json.loads((file.metadata() or {})[HEADER])
        return int(json.loads(facts)["step"])
    except (*DAMAGED, OSError):
        return 0


def _differences(ours: Path, theirs: Path) -> tuple[tuple[str, str, str], ...]:
    """Return the rows of two finished runs that differ, then in what their environments do; () if no row does."""
    rows = _unequal(_values(ours), _values(theirs))
    return (*rows, *_unequal(_facts(ours), _facts(theirs))) if rows else ()


def _unequal(ours: dict[str, str], theirs: dict[str, str]) -> tuple[tuple[str, str, str], ...]:
    names = {**ours, **theirs}
    pairs = ((name, ours.get(name, "none"), theirs.get(name, "none")) for name in names)
    return tuple(pair for pair in pairs if pair[1] != pair[2])


def _values(folder: Path) -> dict[str, str]:
    """Return the values of a run with all their digits, by what tells its rows apart; a stage has none."""
    return {
        " ".join(filter(None, (row["split"], row["task"], row["component"], row["metric"]))): (
            "none" if row["value"] is None or math.isnan(row["value"]) else repr(row["value"])
        )
        for row in read_rows(folder) or ()
        if row["metric"] not in VARYING
    }


def _facts(folder: Path) -> dict[str, str]:
    """Return what the numbers of a run may depend on beside its configuration, of its last session."""
    session = (read_json(folder / "environment.json") or [{}])[-1]
    facts = {name: session[name] for name in ("device", "processor", "threads", "commit") if name in session}
    return {name: str(value) for name, value in (facts | session.get("packages", {})).items()}


def _place_aside(target: Path, store: Store) -> Path:
    """Return where `target` can be kept when it is replaced: a path that is free, and not taken for a run."""
    number = 1
    while (aside := store.folder / REPLACED / f"{target.name}.{number}").exists():
        number += 1
    return aside


def _replace(source: Path, target: Path, aside: Path, store: Store) -> None:
    """Move `target` to `aside` and put a copy of `source` in its place. Raises InUseError and StoreError."""
    with _copy_of(source, store) as copy, locked(target / LOCK, refuse):
        aside.parent.mkdir(exist_ok=True)
        target.rename(aside)
        try:
            copy.rename(target)
        except BaseException:
            aside.rename(target)
            raise


def _copy(source: Path, target: Path, store: Store) -> None:
    """Put a copy of `source` at `target`, where nothing is. Raises StoreError."""
    with _copy_of(source, store) as copy:
        target.parent.mkdir(exist_ok=True)
        copy.rename(target)


@contextlib.contextmanager
def _copy_of(source: Path, store: Store) -> Iterator[Path]:
    """Yield a whole copy of `source` in `store`, without locks, for the caller to rename. Raises StoreError."""
    copy = store.folder / MERGING / f".{source.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        copy.mkdir(parents=True)
        for path in sorted(source.rglob("*")):
            inner = path.relative_to(source)
            if path.is_file() and not any(part.startswith(".") for part in inner.parts):
                _copy_file(path, copy / inner)
        yield copy
    except OSError as error:
        raise StoreError(
            f"Cannot copy {source} to {store.folder}: {error.strerror or error}. What was there is as before. "
            "Free some space or choose another folder, and merge again."
        ) from error
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        with contextlib.suppress(OSError):  # another merge has copies in it
            copy.parent.rmdir()


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file and flush it to disk, so that no file is half there after the folder got its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
