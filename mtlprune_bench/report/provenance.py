"""Provenance: what each run of a report was asked for, what it was made from, where, when and how."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlprune_bench.results.comparisons import flat
from mtlprune_bench.store import CONFIG, PLAN, REQUEST, Store, read_json

if TYPE_CHECKING:
    import pandas as pd

ELSEWHERE = ("started", "command")
"""What differs between sessions on one machine."""


class Interned:
    """Values, each kept once, so that runs need not repeat what they have in common."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def number(self, value: Any) -> int:
        """Return the place of JSON-like `value`."""
        return self._places.setdefault(json.dumps(value), len(self._places))

    def all(self) -> list[Any]:
        """Return all values, by place."""
        return [json.loads(text) for text in self._places]


def provenance(store: Store, rows: pd.DataFrame, beside: Path) -> dict[str, Any]:
    """Return the runs of `rows` by name, and the facts, plans and machines that they refer to by number.

    Folders are relative to `beside`, the folder of the report. A file that is missing leaves its part empty.
    """
    facts, plans, machines = Interned(), Interned(), Interned()
    first = rows.drop_duplicates("run")
    known = first[["run", "status", "reason", "method", "settings", "seed", "sparsity"]].astype(object)
    runs = {}
    for run, *values in known.where(known.notna(), "").itertuples(index=False, name=None):
        folder = store.run_folder(run)
        plan = read_json(folder / PLAN) or {"updates": [], "stages": []}
        updates = [[update["step"], update["sparsity"]] for update in plan["updates"]]
        runs[run] = {
            **dict(zip(("status", "reason", "method", "settings", "seed", "sparsity"), values, strict=True)),
            "folder": os.path.relpath(folder, beside),
            "facts": [facts.number(pair) for pair in flat(read_json(folder / CONFIG) or {})],
            "plan": plans.number([updates, plan.get("stages", [])]),
            "sessions": list(_sessions(folder, machines)),
            "command": command_of(read_json(folder / REQUEST)),
        }
    known_machines = [list(flat(machine)) for machine in machines.all()]
    return {"runs": runs, "facts": facts.all(), "plans": plans.all(), "machines": known_machines}


def _sessions(folder: Path, machines: Interned) -> Iterator[dict[str, Any]]:
    """Yield when, by which command and where a run was worked on."""
    for session in read_json(folder / "environment.json") or []:
        own = {name: value for name, value in session.items() if name not in ELSEWHERE and value is not None}
        yield {
            "started": session.get("started", ""),
            "command": shlex.join(session.get("command") or []),
            "machine": machines.number(own),
        }


def command_of(request: Any) -> str:
    """Return the command that asks for a run again, from its request.json; "" where that is missing.

    The run's seed is the last of those it names: the runs of those before it, where finished, are not run again.
    """
    if not isinstance(request, Mapping):
        return ""
    parts = ["mtlbench", "run", "--method", request["method"], "--dataset", request["dataset"]]
    parts += ["--sparsity", f"{request['sparsity']:g}", "--seeds", str(request["seed"] + 1)]
    parts += ["--model", request["model"]] if request.get("model") else []
    parts += ["--protocol", request["protocol"]]
    for name, value in flat(request.get("settings") or {}):
        parts += ["--set", f"{name}={value}"]
    return shlex.join(parts)
