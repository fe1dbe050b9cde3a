"""Results of tiny runs: what a store holds that has to be the same, whatever happened on the way to it."""

from __future__ import annotations

import json

from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.runs.integrity import check, folders_of
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.suite import run_all
from mtlprune_bench.store import Store, parse_rows, read_history, read_json
from mtlprune_bench.testing import TINY, register_tiny

FEW = {
    "imp": {"schedule": {"rate": 0.5}},
    "disparse-static": {"score": {"batches": 2}},
    "disparse-pretrained": {"score": {"batches": 2}},
}
"""Settings of methods that train or score too often for a tiny run."""
VARYING = ("seconds", "peak_memory")
FACTS = ("environment.json", "error.log", "store.json")
"""Files that say when and where, which differ."""


def registry():
    """Return all plugins, with the tiny dataset."""
    found = load_registry()
    register_tiny(found)
    return found


def request(method, seed=0, sparsity=0.6, **settings):
    """Return a request for a tiny run; checkpoints are written after each step."""
    own = {"engine": {"checkpoint_seconds": 0, "device": "cpu"}, "method": FEW.get(method, {}), **settings}
    return Request(method=method, dataset=TINY, sparsity=sparsity, seed=seed, settings=own)


def finish(store, plugins, *requests):
    """Carry out what is left of `requests`, all of which have to end well."""
    outcomes = list(run_all(requests, Store(store), plugins, notify=lambda text: None))
    assert all(outcome.good for outcome in outcomes), outcomes


def contents(store):
    """Return all that has to be the same in every store with these runs, by file."""
    paths = [path for path in store.rglob("*") if path.is_file() and path.name not in FACTS]
    return {str(path.relative_to(store)): _content(path) for path in paths if not path.name.startswith(".")}


def _content(path):
    if path.name == "rows.parquet":
        return json.dumps([row for row in parse_rows(path.read_bytes()) if row["metric"] not in VARYING])
    if path.suffix == ".jsonl":
        return list(read_history(path))
    if path.name == "cost.json":
        return sorted(read_json(path))  # which parts have been measured; how long they took differs
    return read_json(path) if path.suffix == ".json" else path.read_bytes()


def damaged(store):
    """Return the files of a store that are not as they were written."""
    if not (store / "stages").exists() and not list(store.glob("*/plan.json")):
        return []
    return [file for folder in folders_of(Store(store)) for file in check(*folder).damaged]
