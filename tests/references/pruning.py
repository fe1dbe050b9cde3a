"""Ranks, arbiters and masks in plain Python lists, as the papers describe them."""

from __future__ import annotations


def rank_of_each(scores: list[float]) -> list[float]:
    """Return each score's rank in (0, 1]; of equal scores the first ranks higher."""
    count = len(scores)
    return [
        1 - sum(other > score or (other == score and j < i) for j, other in enumerate(scores)) / count
        for i, score in enumerate(scores)
    ]


def own_mask(scores: list[float], kept: int) -> list[bool]:
    """Return the mask of the `kept` highest scores; of equal scores the first are kept."""
    best = set(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:kept])
    return [i in best for i in range(len(scores))]


def vote(masks: list[list[bool]], needed: int) -> list[bool]:
    """Return which weights at least `needed` of the masks keep."""
    return [sum(votes) >= needed for votes in zip(*masks, strict=True)]


def density_of(shape: tuple[int, ...], power: float) -> float:
    """Return the raw Erdos-Renyi-Kernel density of a layer."""
    total, product = 0, 1
    for size in shape:
        total += size
        product *= size
    return (total / product) ** power


def erk(shapes: list[tuple[int, ...]], density: float, power: float) -> list[float]:
    """Return the density of each layer, by the definition: equations solved again for every dense layer."""
    sizes = []
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        sizes.append(size)
    dense: set[int] = set()
    while True:
        free = [i for i in range(len(shapes)) if i not in dense]
        to_keep = density * sum(sizes) - sum(sizes[i] for i in dense)
        scale = to_keep / sum(density_of(shapes[i], power) * sizes[i] for i in free)
        worst = max(free, key=lambda i: density_of(shapes[i], power))
        if scale * density_of(shapes[worst], power) <= 1:
            return [1.0 if i in dense else scale * density_of(shapes[i], power) for i in range(len(shapes))]
        dense |= {i for i in free if density_of(shapes[i], power) == density_of(shapes[worst], power)}
