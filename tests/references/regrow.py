"""Regrowth and its schedules in plain Python lists, one layer at a time, as the papers describe them.

A layer is a list of numbers and a list of flags, true where a weight is active. Of equal numbers the first wins.
"""

from __future__ import annotations

import math


def cosine_decay(alpha: float, step: int, last: int) -> float:
    """Return the fraction to drop at `step`: `alpha` at 0, half of it half way, 0 at `last` (RigL, section 3)."""
    return alpha / 2 * (1 + math.cos(math.pi * step / last))


def cubic_sparsity(final: float, step: int, last: int) -> float:
    """Return the sparsity at `step`, from 0 to `final` at `last` (Zhu and Gupta, equation 1)."""
    initial = 0.0
    return final + (initial - final) * (1 - step / last) ** 3


def best(values: list[float], candidates: list[bool], number: int) -> list[bool]:
    """Return the `number` candidates with the highest values."""
    order = sorted((i for i in range(len(values)) if candidates[i]), key=lambda i: (-values[i], i))
    chosen = set(order[:number])
    return [i in chosen for i in range(len(values))]


def number_dropped(target: int, fraction: float) -> int:
    """Return how many of `target` weights an update drops: the fraction's part behind the point is cut off."""
    return math.trunc(target * fraction)


def drop(weights: list[float], active: list[bool], target: int, fraction: float) -> list[bool]:
    """Return the survivors of a layer that should have `target` weights: those with the largest magnitudes.

    A layer that has more than its target first loses the excess, one that has fewer loses fewer. One that may
    keep all its weights is never pruned.
    """
    if target == len(weights):
        return [True] * target
    left = target - number_dropped(target, fraction)
    return best([abs(weight) for weight in weights], active, min(left, sum(active)))


def rigl_update(
    weights: list[float], gradients: list[float], active: list[bool], target: int, fraction: float
) -> tuple[list[bool], list[bool]]:
    """Return the survivors and the grown weights of a layer (RigL, algorithm 1, and its released code).

    As many weights grow as are missing, those with the largest gradients of all that did not survive.
    """
    survivors = drop(weights, active, target, fraction)
    vacant = [not kept for kept in survivors]
    grown = best([abs(gradient) for gradient in gradients], vacant, target - sum(survivors))
    return survivors, grown


def set_update(
    weights: list[float], lots: list[float], active: list[bool], target: int, fraction: float
) -> tuple[list[bool], list[bool]]:
    """Return the survivors and the grown weights of a layer, where those with the highest of `lots` grow (SET)."""
    return rigl_update(weights, lots, active, target, fraction)


def disparse_update(
    weights: list[float],
    gradients: list[list[float]],
    active: list[bool],
    target: int,
    fraction: float,
    needed: int = 1,
) -> tuple[list[bool], list[bool]]:
    """Return the survivors and the grown weights of a layer that as many tasks use as there are `gradients`.

    Every task wants as many as are missing grown, by its own gradients; what `needed` of the tasks want grows.
    With one vote (arbiter OR) the layer may exceed its target, by the same number for every further task. The
    excess is what the next update drops (DiSparse, section 4.7).
    """
    survivors = drop(weights, active, target, fraction)
    vacant = [not kept for kept in survivors]
    missing = target - sum(survivors)
    wishes = [best([abs(gradient) for gradient in own], vacant, missing) for own in gradients]
    grown = [sum(votes) >= needed for votes in zip(*wishes, strict=True)]
    return survivors, grown


def density_after_drop(sparsity: float, reached: float, fraction: float, printed: bool) -> float:
    """Return the density that is left of a network with the sparsity `reached`, of which a part is dropped.

    The part is chosen so that a `fraction` of the weights that `sparsity` allows is dropped, and the excess
    with it. `printed` is the formula as DiSparse's section 4.7 has it, with its quotient upside down.
    """
    quotient = (1 - reached) / (1 - sparsity) if printed else (1 - sparsity) / (1 - reached)
    dropped = 1 - quotient * (1 - fraction)
    return (1 - reached) * (1 - dropped)


def adam_decay(weight: float, rates: list[float], weight_decay: float) -> float:
    """Return what becomes of a hidden weight, whose only gradient is its decay, under Adam (Kingma and Ba).

    `rates` are the learning rates of the steps; betas 0.9 and 0.999, epsilon 1e-8.
    """
    first = second = 0.0
    for step, rate in enumerate(rates, 1):
        gradient = weight_decay * weight
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        weight -= rate * (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return weight
