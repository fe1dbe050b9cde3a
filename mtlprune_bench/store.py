"""The store: one folder a run, one a stage that runs share; nothing in it is ever lost or half written."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlprune_bench.errors import StoreError, UsageError, unknown
from mtlprune_bench.files import discard, is_sealed, read_bytes, sealed, unsealed, write_atomic, write_text
from mtlprune_bench.paradigms import paradigm

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
"""One measured number with all that identifies it, or one failure with its reason; keys are COLUMNS."""

COLUMNS: dict[str, str] = {
    "run": "string",
    "status": "string",
    "reason": "string",
    "method": "string",
    "settings": "string",
    "pretrained": "boolean",
    "paradigm": "string",
    "dataset": "string",
    "data": "string",
    "stand_in": "boolean",
    "protocol": "string",
    "model": "string",
    "recipe": "string",
    "finetune": "string",
    "seed": "int64",
    "sparsity": "float64",
    "step": "int64",
    "split": "string",
    "task": "string",
    "component": "string",
    "metric": "string",
    "value": "float64",
    "unit": "string",
    "higher_is_better": "boolean",
}

PARADIGM = "paradigm"
"""The one column that files of rows may lack: it came later than they."""

LOSS = "loss"
SPARSITY = "sparsity"
WHOLE = "whole"
"""The metric that every run has, and its component that is all of the network."""

COSTS = {"steps": "step", "forward": "pass", "backward": "pass", "seconds": "s", "peak_memory": "MB"}
"""The metrics, with their units, of what a run has cost; the last two differ from machine to machine."""

CONFIG, PLAN, REQUEST = "config.json", "plan.json", "request.json"
ROWS = "rows.parquet"
LOCK = ".lock"
CHECKSUM = b"sha256"
"""The entry of a file of rows with the checksum of their cells, in stores of the first version."""

FILE_CHECKSUM = b"sha256-file"
UNSIGNED = b"-" * 64
"""The entry of a file of rows with the checksum of all its bytes, and what stands there while that is taken."""

VERSION = 2
VERSION_FILE = "store.json"
"""The format that is written, and where a store says which one it has; where it does not, it has the first."""

TORN = b" torn"
"""What follows half a line that a killed process has left, when the next one goes on."""

FINISHED = "finished"
FAILED = "failed"
DIVERGED = "diverged"


@dataclass(frozen=True)
class Store:
    """A folder with the folders of runs, and `stages/` with what several runs share."""

    folder: Path

    def __post_init__(self) -> None:
        """Raise StoreError for a store that a later version has written."""
        known = read_json(self.folder / VERSION_FILE)
        version = known.get("version", 1) if isinstance(known, dict) else 1
        if not isinstance(version, int) or version > VERSION:
            raise StoreError(
                f"The store in {self.folder} has format {version}, and this mtlprune-bench knows none above "
                f"{VERSION}. Install a later one, or name another --store."
            )

    def run_folder(self, run_id: str) -> Path:
        """Return the folder of a run, which may not exist yet. Raises StoreError for what is no plain name."""
        return _child(self.folder, run_id)

    def stage_folder(self, key: str) -> Path:
        """Return the folder of a shared stage, which may not exist yet. Raises StoreError as `run_folder`."""
        return _child(self.folder / "stages", key)

    def check_writable(self) -> None:
        """Raise StoreError where nothing can be written in the store; write down its format."""
        probe = self.folder / f".probe-{os.getpid()}.part"
        write_text(probe, "")
        probe.unlink()
        if not (self.folder / VERSION_FILE).exists():
            write_json(self.folder / VERSION_FILE, {"version": VERSION})

    def runs(self) -> list[Path]:
        """Return the folders of all runs, by name."""
        return sorted(path.parent for path in self.folder.glob("*/config.json"))

    def find(self, name: str) -> Path:
        """Return the folder of the run whose id begins or ends with `name`.

        Raises UsageError where there is none or more than one.
        """
        ids = [path.name for path in self.runs()]
        matching = [run for run in ids if run == name] or [
            run for run in ids if run.startswith(name) or run.endswith(name)
        ]
        if not matching:
            raise unknown("run", name, ids)
        if len(matching) > 1:
            raise UsageError(f"'{name}' may be any of {', '.join(matching)}; write more of it.")
        return self.run_folder(matching[0])

    def rows(self) -> pd.DataFrame:
        """Return the rows of all runs that have some."""
        import pandas as pd

        rows = [row for folder in self.runs() for row in read_rows(folder) or ()]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _child(folder: Path, name: str) -> Path:
    """Return what is called `name` in `folder`: names come from files, too, and must not lead elsewhere."""
    if name != Path(name).name or name == "..":
        raise StoreError(f"'{name}' is no name of a folder in {folder}. Run mtlbench store check.")
    return folder / name


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Write a run's rows as Parquet; equal rows are equal bytes. Raises StoreError."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(COLUMNS)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), FILE_CHECKSUM: UNSIGNED})

    def write(path: Path) -> None:
        pq.write_table(table, path)
        # The last of such bytes are the entry: texts stand before it.
        head, _, tail = (data := path.read_bytes()).rpartition(UNSIGNED)
        path.write_bytes(head + hashlib.sha256(data).hexdigest().encode() + tail)

    write_atomic(folder / ROWS, write)


def read_rows(folder: Path) -> list[Row] | None:
    """Return a run's rows, or None where it has none yet; a damaged file is moved aside, with a warning."""
    path = folder / ROWS
    if (data := read_bytes(path)) is None:
        return None
    try:
        rows = parse_rows(data)
    except ValueError as error:
        discard(path, error)
        return None
    older = {PARADIGM: _paradigm(folder)} if rows and PARADIGM not in rows[0] else {}
    return [_typed(row | older) for row in rows]


def parse_rows(data: bytes) -> list[Row]:
    """Return the rows in the bytes of a file of rows. Raises ValueError where they are not as written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        entries = file.metadata.metadata or {}
        if digest := entries.get(FILE_CHECKSUM):
            head, _, tail = data.rpartition(digest)
            if hashlib.sha256(head + UNSIGNED + tail).hexdigest().encode() != digest:
                raise ValueError("the checksum does not fit")
        table = file.read(use_threads=False)
        names = [name for name in COLUMNS if name != PARADIGM or name in table.column_names]
        rows: list[Row] = table.select(names).to_pylist()
        if not digest and entries.get(CHECKSUM) != _digest(rows, names):
            raise ValueError("the checksum does not fit")
    except (pa.ArrowException, OSError, TypeError, KeyError) as error:
        raise ValueError(str(error)) from error
    return rows


def _paradigm(folder: Path) -> str:
    """Return the paradigm of a run whose rows are older than that column; "" where its files do not say it."""
    config, plan = (read_json(folder / name) for name in (CONFIG, PLAN))
    return paradigm(config["method"], plan["updates"]) if config and plan else ""


def _typed(row: Row) -> Row:
    """Return `row` in the order of COLUMNS, with nan for a number that is not there."""
    numbers = {name: math.nan for name, kind in COLUMNS.items() if kind == "float64" and row[name] is None}
    return {name: numbers.get(name, row[name]) for name in COLUMNS}


def _digest(rows: Sequence[Row], names: Sequence[str]) -> bytes:
    """Return the SHA-256 of all cells, which catches what Parquet's own checks do not."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(["" if row[name] is None else row[name] for name in names] for row in rows)
    return hashlib.sha256(text.getvalue().encode()).hexdigest().encode()


def write_json(path: Path, value: Any) -> None:
    """Write an object or array of JSON to `path`, indented, with its checksum. Raises StoreError."""
    write_text(path, sealed(json.dumps(value, indent=2, sort_keys=True) + "\n"))


def read_json(path: Path) -> Any:
    """Return the JSON-like value of `path`, None where there is none; a damaged file is moved aside."""
    if (data := read_bytes(path)) is None:
        return None
    try:
        return parse_json(data)
    except ValueError as error:
        discard(path, error)
        return None


def parse_json(data: bytes) -> Any:
    """Return the value of the bytes of a file of JSON. Raises ValueError where they are not as written."""
    try:
        return json.loads(unsealed(data))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def append_history(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Append one line of JSON an entry, each with its checksum. Raises StoreError where the disk is full."""
    try:
        with path.open("a+b") as file:
            # A killed process may have left half a line; end it, and readers pass over it.
            if file.tell() and _last_byte(path) != b"\n":
                file.write(TORN + b"\n")
            file.writelines((sealed(json.dumps(entry)) + "\n").encode() for entry in entries)
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error.strerror or error}. Free some space.") from error


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


@dataclass(frozen=True)
class Lines:
    """The lines of a history: entries with the bytes that they are of, the numbers of damaged lines, from 1.

    `older` says that no line has a checksum, `half` that the last one has no end: it is being written, or was.
    """

    entries: tuple[tuple[Mapping[str, Any], bytes], ...]
    damaged: tuple[int, ...]
    older: bool
    half: bool


def parse_lines(data: bytes) -> Lines:
    """Return what is in the bytes of a history."""
    entries, damaged = [], []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            entry = parse_json(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise ValueError("it is no entry of a step")
            entries.append((entry, line))
        except ValueError:
            if number < len(lines) and not line.endswith(TORN):
                damaged.append(number)
    older = not any(map(is_sealed, lines))
    return Lines(tuple(entries), () if older else tuple(damaged), older, bool(lines[-1]))


def read_history(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of a loss history by step; of a step that was made twice, the last.

    Damaged lines are left out, with a warning.
    """
    lines = parse_lines(read_bytes(path) or b"")
    if lines.damaged:
        numbers = ", ".join(map(str, lines.damaged))
        warnings.warn(f"{path} is damaged in line {numbers}, which is left out.", stacklevel=2)
    entries = {entry["step"]: entry for entry, _ in lines.entries}
    yield from (entries[step] for step in sorted(entries))
