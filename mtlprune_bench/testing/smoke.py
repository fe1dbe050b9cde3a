"""A run of two steps on the tiny dataset: whether training, pruning, measuring and storing work here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mtlprune_bench.host.registry import BUILT_IN, Registry
from mtlprune_bench.pruning.arbiters import OR
from mtlprune_bench.pruning.method import AT_INIT, PER_TASK, Method
from mtlprune_bench.pruning.schedules import once
from mtlprune_bench.pruning.scorers import saliency
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.doctor import Finding
from mtlprune_bench.runs.environment import resolve_device
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.run import execute
from mtlprune_bench.runs.suite import prepare_all
from mtlprune_bench.store import FINISHED, SPARSITY, WHOLE, Store
from mtlprune_bench.testing.case import watched_by
from mtlprune_bench.testing.tiny import TINY, register_tiny

SMOKE = "smoke"
"""The name of the method that is run."""
ASKED = 0.5
STEPS = 2


def smoke(registry: Registry, folder: Path) -> Finding:
    """Return how a run of two steps ends whose store is `folder`: its sparsity has to be the one asked for."""
    own = watched_by(dataclasses.replace(registry, entries=dict(registry.entries)))
    register_tiny(own)
    axes = {"score": saliency(batches=1), "scope": PER_TASK, "arbiter": OR, "schedule": once(), "start": AT_INIT}
    method = Method(name=SMOKE, **axes)  # type: ignore[arg-type]
    own.add("methods", method, __name__, BUILT_IN, None)
    settings = {"train": {"steps": STEPS}}
    request = Request(method=SMOKE, dataset=TINY, sparsity=ASKED, seed=0, settings=settings)
    device = resolve_device("auto")
    advice = "Give the same command with --debug, and look at the versions above."
    try:
        (experiment,) = prepare_all([request], own, lambda text: None)
        rows = execute(experiment, Store(folder), own, Engine())
    except Exception as error:
        return Finding("run", str(device), "problem", f"{type(error).__name__}: {error}", advice)
    failed = [row for row in rows if row["status"] != FINISHED]
    if failed:
        return Finding("run", str(device), "problem", failed[0]["reason"], advice)
    reached = [row["value"] for row in rows if (row["metric"], row["component"]) == (SPARSITY, WHOLE)]
    found = f"{STEPS} steps, {len(rows)} numbers, sparsity {reached[0]:.4f}"
    # Exact to the weight: of a thousand, half of one is lost by rounding at most.
    if abs(reached[0] - ASKED) > 1e-3:
        return Finding("run", str(device), "problem", f"{found}, but {ASKED} was asked for", advice)
    return Finding("run", str(device), "ok", found)
