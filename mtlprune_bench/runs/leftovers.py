"""Leftovers: what a store holds that no run needs, what killed processes left behind, and what was set aside."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mtlprune_bench.errors import StoreError, UsageError
from mtlprune_bench.files import is_locked, locked
from mtlprune_bench.store import CONFIG, FINISHED, LOCK, PLAN, Store, read_json, read_rows

REPLACED = "replaced"
"""The folder of a store where merging keeps the runs and stages that better ones took the place of."""

MERGING = ".merging"
"""The folder of a store where merging fills copies, before they get their names."""

STAGE = "stage"
TEMPORARY = "temporary"
SET_ASIDE = "set aside"

HOUR = 3600.0
"""Age in seconds from which a temporary file is taken for one whose writer was killed."""


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nothing needs; `size` in bytes, `age` in seconds since the last change in it.

    `kept` is the reason why it is not to be removed, "" where there is none.
    """

    path: Path
    kind: str
    size: int
    age: float
    kept: str = ""


class InUseError(Exception):
    """Another process is working on a folder."""


def refuse(owner: str) -> NoReturn:
    """Raise InUseError; for `locked`, instead of waiting for the process `owner`."""
    raise InUseError(f"process {owner} has begun to work on it")


def in_work(folder: Path) -> bool:
    """Return whether a living process is working on the run or stage in `folder`."""
    try:
        return is_locked(folder / LOCK)
    except OSError:
        return False  # nobody works where nothing can be written, such as in an archive


def is_finished(folder: Path) -> bool:
    """Return whether the run in `folder` has ended well."""
    rows = read_rows(folder)
    return bool(rows) and all(row["status"] == FINISHED for row in rows or ())


def stage_folders(store: Store) -> list[Path]:
    """Return the folders of stages that are neither set aside nor half written, by name."""
    folders = store.stage_folder("").glob("[!.]*")
    return sorted(path for path in folders if path.is_dir() and ".damaged-" not in path.name)


def leftovers(store: Store, scores: bool = False) -> tuple[list[Leftover], list[str]]:
    """Return what nothing in `store` needs, and the runs of which it is not known which stages they need.

    While there are such runs, or a process is at work, everything that may be needed has a reason to be kept.
    With `scores` the scores whose runs have all finished are not needed either. Raises UsageError where there is
    no store.
    """
    runs, stages = _run_folders(store), stage_folders(store)
    if not runs and not stages:
        raise UsageError(f"There is no store in {store.folder}. Name the folder of the results with --store.")
    users, unclear = _users(runs)
    reason = f"{unclear[0]} does not say which stages it needs" if unclear else ""
    busy = next((folder.name for folder in [*runs, *stages] if in_work(folder)), "")
    found = []
    for stage in stages:
        spent = scores and stage.name.startswith("scores-") and all(map(is_finished, users.get(stage.name, ())))
        if stage.name not in users or spent:
            found.append(_leftover(stage, STAGE, reason or _why_kept(stage, busy)))
    going = {item.path for item in found}
    found += [
        _leftover(path, TEMPORARY, reason) for path in _temporary(store, runs) if not going & {*path.parents}
    ]
    found += [_leftover(path, SET_ASIDE, "look at it, and remove it by hand") for path in _set_aside(store, runs)]
    return found, unclear


def remove(leftover: Leftover) -> bool:
    """Remove a leftover and return whether it is gone: what has a reason to be kept, or is in use now, stays.

    Raises StoreError where it cannot be removed.
    """
    path = leftover.path
    if leftover.kept:
        return False
    try:
        if leftover.kind == STAGE:
            with locked(path / LOCK, refuse):
                # Renamed first: whoever needs it again finds all of it or nothing.
                path = path.rename(path.with_name(f".{path.name}.{os.getpid()}.part"))
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except InUseError:
        return False
    except OSError as error:
        raise StoreError(f"Cannot remove {path}: {error.strerror or error}. Remove it by hand.") from error
    return True


def _run_folders(store: Store) -> list[Path]:
    """Return the folders of runs; those that have lost their configuration, too, as they may need stages."""
    return sorted({path.parent for name in (CONFIG, PLAN) for path in store.folder.glob(f"*/{name}")})


def _users(runs: list[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the runs that need a stage, by its name, and the names of runs that do not say what they need."""
    users: dict[str, list[Path]] = {}
    unclear = []
    for folder in runs:
        plan = read_json(folder / PLAN)
        if not isinstance(plan, dict) or not isinstance(plan.get("stages"), list):
            unclear.append(folder.name)
            continue
        for name in plan["stages"]:
            users.setdefault(name, []).append(folder)
    return users, unclear


def _why_kept(stage: Path, busy: str) -> str:
    """Return why a stage that no run refers to is not to be removed; `busy` is what a process is working on."""
    if in_work(stage):
        return "a process is working on it"
    if busy:
        return f"a process is working on {busy}: a run that comes later may need it"
    return "files in it were set aside" if any(stage.rglob("*.damaged-*")) else ""


def _temporary(store: Store, runs: list[Path]) -> Iterator[Path]:
    """Yield files and folders that writers who were killed have left half written."""
    inside = [*runs, store.stage_folder(""), store.folder / MERGING]
    paths = [*store.folder.glob(".*.part"), *(path for folder in inside for path in folder.rglob(".*.part"))]
    for path in sorted(paths):
        parents = [parent for parent in path.parents if store.folder in parent.parents]
        nested = any(parent.name.startswith(".") and parent.suffix == ".part" for parent in parents)
        if not nested and _age(path) > HOUR and not any(map(in_work, parents)):
            yield path


def _set_aside(store: Store, runs: list[Path]) -> list[Path]:
    """Return what was damaged, or replaced by better results, and is kept."""
    inside = [*runs, store.stage_folder("")]
    damaged = {path for folder in inside for path in folder.rglob("*.damaged-*")}
    return sorted({*store.folder.glob("*.damaged-*"), *damaged, *(store.folder / REPLACED).glob("*")})


def _leftover(path: Path, kind: str, kept: str) -> Leftover:
    size = sum(part.stat().st_size for part in [path, *path.rglob("*")] if part.is_file())
    return Leftover(path, kind, size, _age(path), kept)


def _age(path: Path) -> float:
    """Return the seconds since `path`, or anything in it, was changed."""
    return max(0.0, time.time() - max(part.stat().st_mtime for part in [path, *path.rglob("*")]))
