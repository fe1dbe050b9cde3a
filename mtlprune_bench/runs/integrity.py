"""Integrity: every file of a store held against its checksum, and what is damaged moved aside."""

from __future__ import annotations

import functools
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mtlprune_bench.errors import StoreError, UsageError
from mtlprune_bench.files import is_sealed, locked, set_aside, write_atomic
from mtlprune_bench.runs.config import digest
from mtlprune_bench.runs.costs import COST
from mtlprune_bench.runs.leftovers import MERGING, REPLACED, InUseError, in_work, refuse, stage_folders
from mtlprune_bench.runs.pipeline import START_MASKS
from mtlprune_bench.runs.stages import SPARSITIES
from mtlprune_bench.store import (
    CONFIG,
    FINISHED,
    LOCK,
    PLAN,
    REQUEST,
    ROWS,
    VERSION_FILE,
    Store,
    parse_json,
    parse_lines,
    parse_rows,
)
from mtlprune_bench.training.checkpoint import MASKS, SCORES, WEIGHTS, verify_tensors
from mtlprune_bench.training.state import BEST, CHECKPOINT
from mtlprune_bench.training.train import HISTORY

State = Literal["verified", "older", "damaged", "unknown"]
"""What a file is: as it was written; of the first format, where it had no checksum; damaged; or none of ours."""

Progress = Literal["finished", "unfinished", "locked"]
"""How far a folder is; one that a process is working on is locked, and its files are not looked at."""

DAMAGED = ".damaged-"


@dataclass(frozen=True)
class File:
    """A file of a store, and what is wrong with it; "" for nothing."""

    path: Path
    state: State
    problem: str = ""


@dataclass(frozen=True)
class Folder:
    """A run, a stage, or the store itself, with the files in it."""

    path: Path
    kind: Literal["run", "stage", "store"]
    progress: Progress
    files: tuple[File, ...] = ()

    @property
    def damaged(self) -> tuple[File, ...]:
        """Return the files that are not as they were written."""
        return tuple(file for file in self.files if file.state == "damaged")


@dataclass(frozen=True)
class Repair:
    """A file that was set aside, why, what becomes of it, and the command that does that; "" where none does."""

    path: Path
    problem: str
    outcome: str
    command: str


def folders_of(store: Store) -> list[tuple[Path, Literal["run", "stage", "store"]]]:
    """Return the folders that a store consists of: itself, its runs, and its stages.

    Raises UsageError where there is no store.
    """
    runs = sorted(path for path in store.folder.glob("[!.]*") if _is_run(path))
    stages = stage_folders(store)
    if not runs and not stages:
        raise UsageError(f"There is no store in {store.folder}. Name the folder of the results with --store.")
    return [(store.folder, "store"), *((path, "run") for path in runs), *((path, "stage") for path in stages)]


def _is_run(path: Path) -> bool:
    """Return whether a folder of a store is that of a run, also of one that has lost some of its files."""
    special = path.name in ("stages", REPLACED, MERGING) or DAMAGED in path.name
    return path.is_dir() and not special and any((path / name).exists() for name in (*JSON, ROWS, WEIGHTS, LOCK))


def check(folder: Path, kind: Literal["run", "stage", "store"], ours: bool = False) -> Folder:
    """Return what is in a folder of a store, every file of it read; nothing is changed.

    A folder that a process is working on is not looked at, unless it is `ours`.
    """
    if kind != "store" and not ours and in_work(folder):
        return Folder(folder, kind, "locked")
    inside = folder.glob("*") if kind == "store" else folder.rglob("*")
    files = [_file(path) for path in sorted(inside) if path.is_file() and _counts(path)]
    found = tuple(file for file in files if file is not None)
    return Folder(folder, kind, "finished" if _finished(kind, folder) else "unfinished", found)


def _counts(path: Path) -> bool:
    """Return whether a file belongs to the results: locks, half-written files and what was set aside do not."""
    return not path.name.startswith(".") and DAMAGED not in path.name


def _finished(kind: str, folder: Path) -> bool:
    """Return whether a folder has all that it is made for."""
    if kind == "run":
        rows = _attempt(lambda: parse_rows((folder / ROWS).read_bytes()))
        return bool(rows) and all(row["status"] == FINISHED for row in rows)
    trained = all((folder / name).exists() for name in (WEIGHTS, MASKS))
    return kind == "store" or trained or (folder / SCORES).exists()


def _attempt(read: Callable[[], Any]) -> Any:
    """Return what `read` returns, None where there is nothing or it is damaged."""
    try:
        return read()
    except (OSError, ValueError):
        return None


def _file(path: Path) -> File | None:
    """Return the state of a file; None where it is gone by now, as checkpoints are when a training ends."""
    try:
        return File(path, _state(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        return File(path, "damaged", " ".join(str(error).split()))
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror or error}.") from error


def _state(path: Path) -> State:
    """Return the state of a file that is not damaged. Raises ValueError where it is, and OSError."""
    if path.name in TENSORS:
        verify_tensors(path)
    elif path.name == ROWS:
        parse_rows(path.read_bytes())
    elif path.name in LINES:
        return _lines_state(path)
    elif path.name in JSON:
        data = path.read_bytes()
        value = parse_json(data)
        if is_sealed(data):
            return "verified"
        if path.name != CONFIG:
            return "older"
        if digest(value) != path.parent.name.rpartition("-")[2]:
            raise ValueError("the name of its folder does not end in its hash")
    else:
        return "unknown"
    return "verified"


def _lines_state(path: Path) -> State:
    """Return the state of a file of lines. Raises ValueError where one is damaged."""
    lines = parse_lines(path.read_bytes())
    if lines.damaged:
        raise ValueError(f"the checksum does not fit in line {', '.join(map(str, lines.damaged))}")
    if lines.half and (path.parent / WEIGHTS).exists():
        raise ValueError("its last line has no end, though the training has ended")
    return "older" if lines.older else "verified"


TENSORS = {WEIGHTS, MASKS, SCORES, START_MASKS, CHECKPOINT, BEST}
LINES = {HISTORY, SPARSITIES}
JSON = (CONFIG, PLAN, REQUEST, "environment.json", COST, VERSION_FILE)


def repair(store: Store, again: bool = False) -> Iterator[tuple[Folder, list[Repair]]]:
    """Set what is damaged in `store` aside, and yield each folder with what was done in it; nothing is deleted.

    Folders that a process is working on are left alone. With `again` the numbers of a finished run go aside, too,
    where its weights or masks are gone, so that the run is made once more. May be stopped and begun again.
    """
    command = functools.cache(lambda: _commands(store))
    for path, kind in folders_of(store):
        if kind == "store":
            folder = check(path, kind)
            yield folder, [_move(file, folder, "") for file in folder.damaged]
            continue
        try:
            with locked(path / LOCK, refuse):
                folder = check(path, kind, ours=True)
                done = [_move(file, folder, command().get(path, "")) for file in folder.damaged]
                if again and kind == "run" and folder.progress == "finished" and _lost(path):
                    aside = File(path / ROWS, "verified", f"{' and '.join(_lost(path))} were set aside")
                    done.append(_move(aside, folder, command().get(path, "")))
        except InUseError:
            folder, done = Folder(path, kind, "locked"), []
        yield folder, done


def _lost(folder: Path) -> list[str]:
    """Return which of a run's final files were set aside, and not made again since."""
    gone = [name for name in (WEIGHTS, MASKS) if not (folder / name).exists()]
    return [name for name in gone if any(folder.glob(f"{name}{DAMAGED}*"))]


def _move(file: File, folder: Folder, command: str) -> Repair:
    """Set a file aside; of a file of lines the good ones stay. Return what becomes of it."""
    outcome = _outcome(file.path, folder)
    try:
        if file.path.name in LINES:
            _keep_good_lines(file.path)
        else:
            set_aside(file.path)
    except OSError as error:
        raise StoreError(f"Cannot set {file.path} aside: {error.strerror or error}.") from error
    return Repair(file.path, file.problem, outcome, command if outcome not in (NOTHING, CURVES) else "")


def _keep_good_lines(path: Path) -> None:
    """Keep a copy of a file of lines as it is, and leave its good lines in its place."""
    good = b"".join(line + b"\n" for _, line in parse_lines(path.read_bytes()).entries)
    number = 1
    while (copy := path.with_name(f"{path.name}{DAMAGED}{number}")).exists():
        number += 1
    write_atomic(copy, lambda temporary: _copy(path, temporary))
    write_atomic(path, lambda temporary: _write(temporary, good))


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


NOTHING = "nothing is computed again: no result depends on it any more"
CURVES = "nothing is computed again: curves lack these steps"


def _outcome(path: Path, folder: Folder) -> str:
    """Return what becomes of a file that is set aside, in words."""
    name, trained = path.name, (path.parent / WEIGHTS).exists()
    own = folder.kind == "run" and folder.progress == "finished" and path.parent == folder.path
    if name in LINES:
        return CURVES
    if name == ROWS:
        return "the run is measured again; what is left of its training is used"
    if name == SCORES:
        return "weights are scored again, where a run still needs it"
    if name in (WEIGHTS, MASKS):
        return "its numbers stay; with --again all of it is made again" if own else "trained again, where needed"
    if name == START_MASKS and not trained:
        return "masks are made again"
    if name in (CHECKPOINT, BEST) and not trained:
        return "trained anew, from the beginning of this training"
    if name in (CONFIG, PLAN, REQUEST):
        return "written again; nothing is computed"
    return NOTHING


def _commands(store: Store) -> dict[Path, str]:
    """Return for each run, and each stage that one needs, the command that makes it."""
    commands: dict[Path, str] = {}
    for folder, kind in folders_of(store):
        if kind != "run":
            continue
        text = _command(folder)
        commands[folder] = text
        plan = _read(folder / PLAN)
        names = plan.get("stages") if isinstance(plan, dict) else None
        for name in names if isinstance(names, list) else ():
            commands.setdefault(store.stage_folder(str(name)), text)
    return commands


def _command(folder: Path) -> str:
    """Return the command that made a run the last time, as its files say; "" where they do not."""
    sessions = _read(folder / "environment.json")
    if isinstance(sessions, list) and sessions and isinstance(sessions[-1], dict):
        words: Sequence[Any] = sessions[-1].get("command") or ()
        if len(words) > 1:
            return shlex.join(["mtlbench", *map(str, words[1:])])
    return "the mtlbench run or suite run that made it"


def _read(path: Path) -> Any:
    """Return the value of a file of JSON, None where there is none that is good."""
    return _attempt(lambda: parse_json(path.read_bytes()))
