"""Content: the whole of a report, from a store, as JSON-like values in which nothing is marked up yet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlprune_bench import __version__
from mtlprune_bench.errors import UsageError
from mtlprune_bench.report.differences import paired
from mtlprune_bench.report.provenance import provenance
from mtlprune_bench.report.sections import measured, section
from mtlprune_bench.results.captions import differing
from mtlprune_bench.results.comparisons import Comparison
from mtlprune_bench.results.views import of_lines, parse_filter, selected
from mtlprune_bench.store import Store

if TYPE_CHECKING:
    from mtlprune_bench.host.registry import Registry


def content(
    store: Store, beside: Path, filters: Sequence[str], reference: str | None, registry: Registry | None
) -> dict[str, Any]:
    """Return all that a report of `store` says, JSON-like, with None for numbers that are not finite.

    `beside` is the folder that it is written to, from which folders of runs are named. `reference` is what methods
    are compared with, None for dense networks. With a registry, whose models are then built, it has densities by
    layer. Raises UsageError where there are no results, or the reference is nowhere.
    """
    rows = store.rows()
    if rows.empty:
        raise UsageError(
            f"There are no results in {store.folder}. Make some with mtlbench run, or name another --store."
        )
    found, good = selected(rows, filters)
    values = measured(good)
    lines = of_lines([parse_filter(text) for text in filters])
    pairs = [paired(comparison, good, reference) for comparison in found]
    if reference is not None and not any(each.found for each in pairs):
        raise UsageError(pairs[0].reason)
    settings = [section(each, values, own, lines) for each, own in zip(found, pairs, strict=True)]
    if registry is not None:
        for setting, comparison in zip(settings, found, strict=True):
            _add_layers(setting, comparison, store, registry)
    shown = good["run"].isin({run for comparison in found for run in _runs(comparison)})
    known = set(rows["run"])
    whole = {
        "version": __version__,
        "store": str(store.folder),
        "filters": list(filters),
        "differing": differing(found),
        "settings": settings,
        "unfinished": [folder.name for folder in store.runs() if folder.name not in known],
        **provenance(store, good[shown], beside),
    }
    return {name: _finite(value) for name, value in whole.items()}


def _add_layers(setting: dict[str, Any], comparison: Comparison, store: Store, registry: Registry) -> None:
    """Add the layers, and each measured line's density by layer."""
    from mtlprune_bench.report.layers import densities  # which needs torch, as nothing else here

    setting["layers"], found = densities(comparison, store, registry)
    measured_here = [line for line in setting["lines"] if not line["source"]]
    for line, own in zip(measured_here, found, strict=True):
        line["densities"] = own


def _runs(comparison: Comparison) -> list[str]:
    return [*(run for line in comparison.lines for run in line.runs), *comparison.failures]


def _finite(value: Any) -> Any:
    """Return JSON-like `value` with None for every number that is not finite, as JSON has none of them."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
