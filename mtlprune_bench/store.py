"""The store: one folder a run, one a stage that runs share; nothing in it is ever lost or half written."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlprune_bench.errors import StoreError, UsageError, unknown
from mtlprune_bench.files import discard, write_atomic, write_text
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

ROWS = "rows.parquet"
LOCK = ".lock"
CHECKSUM = b"sha256"

FINISHED = "finished"
FAILED = "failed"
DIVERGED = "diverged"


@dataclass(frozen=True)
class Store:
    """A folder with the folders of runs, and `stages/` with what several runs share."""

    folder: Path

    def run_folder(self, run_id: str) -> Path:
        """Return the folder of a run, which may not exist yet."""
        return self.folder / run_id

    def stage_folder(self, key: str) -> Path:
        """Return the folder of a shared stage, which may not exist yet."""
        return self.folder / "stages" / key

    def check_writable(self) -> None:
        """Raise StoreError where nothing can be written in the store."""
        probe = self.folder / f".probe-{os.getpid()}"
        write_text(probe, "")
        probe.unlink()

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


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Write a run's rows as Parquet; equal rows are equal bytes. Raises StoreError."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(COLUMNS)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    checksum = _digest(table.to_pylist(), table.column_names)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), CHECKSUM: checksum})
    write_atomic(folder / ROWS, lambda temporary: pq.write_table(table, temporary))


def read_rows(folder: Path) -> list[Row] | None:
    """Return a run's rows, or None where it has none yet; a damaged file is moved aside, with a warning."""
    path = folder / ROWS
    if not path.exists():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read(use_threads=False)
        names = [name for name in COLUMNS if name != PARADIGM or name in table.column_names]
        rows: list[Row] = table.select(names).to_pylist()
        if (table.schema.metadata or {}).get(CHECKSUM) != _digest(rows, names):
            raise ValueError("the checksum does not fit")
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        discard(path, error)
        return None
    older = {} if PARADIGM in names else {PARADIGM: _paradigm(folder)}
    return [_typed(row | older) for row in rows]


def _paradigm(folder: Path) -> str:
    """Return the paradigm of a run whose rows are older than that column; "" where its files do not say it."""
    config, plan = (read_json(folder / name) for name in ("config.json", "plan.json"))
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
    """Write JSON-like `value` to `path`, indented. Raises StoreError."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Return the JSON-like value of `path`, None where there is none; a damaged file is moved aside."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        discard(path, error)
        return None


def append_history(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Append one line of JSON an entry. Raises StoreError where the disk is full."""
    try:
        with path.open("a+b") as file:
            # A killed process may have left half a line; end it, and readers pass over it.
            if file.tell() and _last_byte(path) != b"\n":
                file.write(b"\n")
            file.writelines((json.dumps(entry) + "\n").encode() for entry in entries)
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error.strerror or error}. Free some space.") from error


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def read_history(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of a loss history by step; of a step that was made twice, the last."""
    entries = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            entries[entry["step"]] = entry
    yield from (entries[step] for step in sorted(entries))
