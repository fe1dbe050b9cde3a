"""Masks: which weights are kept. Exact to the weight, with ties broken by index."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlprune_bench.tensors import NamedTensors

DRAWN = 2**14
"""How many values are drawn to find the k-th largest of many."""
MARGIN = 2**8
"""How far apart in the drawn ones the two values are, to both sides, between which it is looked for."""

Masks = Mapping[str, Tensor]
"""Boolean tensors by weight name, true where the weight is kept."""


def kept_count(total: int, sparsity: float) -> int:
    """Return how many of `total` weights a `sparsity` in [0, 1) keeps, to the nearest weight."""
    return total - round(total * sparsity)


def sparsity(masks: Masks, names: Iterable[str] | None = None) -> float:
    """Return the fraction removed, in [0, 1], of the weights `names` (default: all), measured on `masks`."""
    chosen = [masks[name] for name in (masks if names is None else names)]
    total = sum(mask.numel() for mask in chosen)
    return 1 - count(*chosen) / total if total else 0.0


def count(*masks: Tensor) -> int:
    """Return how many weights `masks` keep."""
    # On a CPU, the sum of booleans takes twenty times as long.
    return sum(int(torch.count_nonzero(mask)) for mask in masks)


def places(mask: Tensor) -> Tensor:
    """Return where `mask` [n] is true, ascending: int64 [m]."""
    if mask.is_cuda:
        return torch.nonzero(mask).flatten()
    # On a CPU, NumPy finds few among many several times as fast.
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def keep_top(scores: NamedTensors, kept: int) -> dict[str, Tensor]:
    """Return the masks that keep exactly the `kept` highest of `scores`.

    Of equal scores those that come first, in the order of the mapping and within a tensor in row-major
    order, are kept.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    if kept > 0:
        threshold = kth_largest(flat, kept)
        mask = holds(operator.gt, flat, threshold)
        ties = places(holds(operator.eq, flat, threshold))
        mask[ties[: kept - count(mask)]] = True
    sizes = [score.numel() for score in scores.values()]
    return {name: part.view_as(scores[name]) for name, part in zip(scores, torch.split(mask, sizes), strict=True)}


def holds(test: Callable[[Any, Any], Any], values: Tensor, limit: float) -> Tensor:
    """Return where `test(value, limit)` is true of `values` [n]: bool [n]."""
    if values.is_cuda:
        held: Tensor = test(values, limit)
        return held
    # On a CPU, NumPy compares four times as fast as torch.
    return torch.from_numpy(test(as_array(values), limit))


def as_array(values: Tensor) -> Any:
    """Return a CPU tensor as NumPy's array, which shares its memory; bfloat16, which NumPy lacks, as float32."""
    values = values.detach()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def kth_largest(values: Tensor, k: int) -> float:
    """Return the `k`-th largest of `values` [n], k from 1."""
    place = values.numel() - k
    if values.is_cuda:
        return float(torch.kthvalue(values, place + 1).values)
    # On a CPU, kthvalue and NumPy's partition take minutes, or seconds, for some orders of millions, or many equal
    # ones. Sorting never does, of all values, or of those between two that a sample finds around the place.
    array = as_array(values)
    if len(array) > 2 * DRAWN:
        drawn = np.sort(array[np.random.default_rng(0).integers(len(array), size=DRAWN)])
        middle = place * DRAWN // len(array)
        low, high = drawn[max(middle - MARGIN, 0)], drawn[min(middle + MARGIN, DRAWN - 1)]
        below = np.count_nonzero(array < low)
        between = array[(array >= low) & (array <= high)]
        if below <= place < below + len(between):
            return float(np.sort(between)[place - below])
    return float(np.sort(array)[place])


def pack(mask: Tensor) -> Tensor:
    """Return a mask as one bit a weight: uint8 [ceil(n / 8)], the first weight in the highest bit."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().ravel()))


def unpack(bits: Tensor, shape: Iterable[int]) -> Tensor:
    """Return the mask of `shape` that `pack` made `bits` of."""
    size = torch.Size(shape)
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=size.numel()).astype(bool)).view(size)
