"""Layers: the density of every layer by line, from the masks that runs have stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtlprune_bench.analysis.sources import stored_masks
from mtlprune_bench.analysis.views import component_of
from mtlprune_bench.errors import MtlbenchError
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.pruning.masks import Masks, sparsity
from mtlprune_bench.results.comparisons import Comparison, Line
from mtlprune_bench.store import Store
from mtlprune_bench.training.checkpoint import MASKS, load_masks

Densities = list[float | None] | None
"""Of one line, by layer."""


def densities(
    comparison: Comparison, store: Store, registry: Registry
) -> tuple[list[tuple[str, str]], list[Densities]]:
    """Return the layers of a setting with their components, and each line's density by layer.

    A density is the mean over the line's runs, in [0, 1], None for a layer without a mask; of a line without masks
    there is none at all. Components come from one run, whose network is built again without memory; they are ""
    where its plugins are missing.
    """
    found = [_of_line(line, store) for line in comparison.lines]
    names = list(dict.fromkeys(name for means in found for name in means))
    components = _components(comparison, store, registry)
    order = {name: place for place, name in enumerate(components)}
    names.sort(key=lambda name: order.get(name, len(order)))
    lines: list[Densities] = [[means.get(name) for name in names] if means else None for means in found]
    return [(name, components.get(name, "")) for name in names], lines


def _of_line(line: Line, store: Store) -> dict[str, float]:
    """Return the mean density by layer of a line's runs that have masks."""
    runs = [masks for masks in (load_masks(store.run_folder(run) / MASKS) for run in line.runs) if masks]
    names = dict.fromkeys(name for masks in runs for name in masks)
    return {name: _mean(runs, name) for name in names}


def _mean(runs: Sequence[Masks], name: str) -> float:
    own = [1 - sparsity(masks, [name]) for masks in runs if name in masks]
    return sum(own) / len(own)


def _components(comparison: Comparison, store: Store, registry: Registry) -> Mapping[str, str]:
    """Return the component of every layer, in the order of components, from the first run of which it is known."""
    for run in (run for line in comparison.lines for run in line.runs):
        try:
            return component_of(stored_masks(store.run_folder(run), registry))
        except MtlbenchError:
            continue
    return {}
