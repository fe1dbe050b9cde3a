"""Allocations: how many of the kept weights each layer, or the network as a whole, gets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mtlprune_bench.errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each prunable weight, by name."""


@dataclass(frozen=True)
class Group:
    """Weights that compete with each other, and how many of them are kept."""

    names: tuple[str, ...]
    kept: int


@dataclass(frozen=True)
class Global:
    """All weights of the network compete with each other."""

    name: str = field(default="global", init=False)

    def groups(self, shapes: Shapes, kept: int) -> tuple[Group, ...]:
        """Return the one group of all weights."""
        return (Group(tuple(shapes), kept),)


@dataclass(frozen=True)
class Uniform:
    """Every layer keeps the same fraction of its weights."""

    name: str = field(default="uniform", init=False)

    def groups(self, shapes: Shapes, kept: int) -> tuple[Group, ...]:
        """Return one group a layer; their counts sum to `kept`."""
        density = kept / sum(map(math.prod, shapes.values()))
        return _by_layer(shapes, dict.fromkeys(shapes, density), kept)


@dataclass(frozen=True)
class Erk:
    """Erdos-Renyi-Kernel: a layer's density follows (sum of its dimensions / their product) ** power.

    RigL, appendix; its code uses power 1, DiSparse's 0.9. Layers that would exceed density 1 are kept whole
    and the rest share what remains.
    """

    power: float = field(default=1.0, metadata={"help": "exponent of a layer's raw density"})
    name: str = field(default="erk", init=False)

    def groups(self, shapes: Shapes, kept: int) -> tuple[Group, ...]:
        """Return one group a layer; their counts sum to `kept`."""
        return _by_layer(shapes, erk_densities(shapes, kept, self.power), kept)


def erk_densities(shapes: Shapes, kept: int, power: float) -> dict[str, float]:
    """Return each layer's density in [0, 1]; over all layers they keep `kept` weights."""
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: (sum(shape) / math.prod(shape)) ** power for name, shape in shapes.items()}
    whole: set[str] = set()
    while len(whole) < len(shapes):
        free = [name for name in shapes if name not in whole]
        left = kept - sum(size[name] for name in whole)
        scale = left / sum(raw[name] * size[name] for name in free)
        largest = max(raw[name] for name in free)
        if scale * largest <= 1:
            return {name: 1.0 if name in whole else max(scale * raw[name], 0.0) for name in shapes}
        whole.update(name for name in free if raw[name] == largest)
    return dict.fromkeys(shapes, 1.0)


def _by_layer(shapes: Shapes, densities: Mapping[str, float], kept: int) -> tuple[Group, ...]:
    """Round `densities` to whole weights that sum to `kept`: the largest remainders are rounded up."""
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    exact = {name: densities[name] * size[name] for name in shapes}
    counts = {name: min(math.floor(exact[name]), size[name]) for name in shapes}
    by_remainder = sorted(shapes, key=lambda name: counts[name] - exact[name])
    missing = kept - sum(counts.values())
    for name in by_remainder * 2:
        if missing > 0 and counts[name] < size[name]:
            counts[name] += 1
            missing -= 1
    if missing:
        raise UsageError(f"{kept} weights cannot be shared out over {len(shapes)} layers.")
    return tuple(Group((name,), counts[name]) for name in shapes)
