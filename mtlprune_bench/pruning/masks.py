"""Masks: which weights are kept. Exact to the weight, with ties broken by index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from mtlprune_bench.tensors import NamedTensors

Masks = Mapping[str, Tensor]
"""Boolean tensors by weight name, true where the weight is kept."""


def kept_count(total: int, sparsity: float) -> int:
    """Return how many of `total` weights a `sparsity` in [0, 1) keeps, to the nearest weight."""
    return total - round(total * sparsity)


def sparsity(masks: Masks, names: Iterable[str] | None = None) -> float:
    """Return the fraction removed, in [0, 1], of the weights `names` (default: all), measured on `masks`."""
    chosen = [masks[name] for name in (masks if names is None else names)]
    total = sum(mask.numel() for mask in chosen)
    kept = sum(int(mask.sum()) for mask in chosen)
    return 1 - kept / total if total else 0.0


def keep_top(scores: NamedTensors, kept: int) -> dict[str, Tensor]:
    """Return the masks that keep exactly the `kept` highest of `scores`.

    Of equal scores those that come first, in the order of the mapping and within a tensor in row-major
    order, are kept.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    if kept > 0:
        threshold = _kth_largest(flat, kept)
        torch.gt(flat, threshold, out=mask)
        ties = torch.nonzero(flat == threshold).flatten()
        mask[ties[: kept - int(mask.sum())]] = True
    sizes = [score.numel() for score in scores.values()]
    return {name: part.view_as(scores[name]) for name, part in zip(scores, torch.split(mask, sizes), strict=True)}


def _kth_largest(values: Tensor, k: int) -> float:
    """Return the `k`-th largest of `values` [n], k from 1."""
    place = values.numel() - k
    if values.is_cuda:
        return float(torch.kthvalue(values, place + 1).values)
    # On a CPU, kthvalue takes quadratic time on some orders, minutes for millions; numpy's never does.
    return float(np.partition(values.detach().numpy(), place)[place])


def pack(mask: Tensor) -> Tensor:
    """Return a mask as one bit a weight: uint8 [ceil(n / 8)], the first weight in the highest bit."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().ravel()))


def unpack(bits: Tensor, shape: Iterable[int]) -> Tensor:
    """Return the mask of `shape` that `pack` made `bits` of."""
    size = torch.Size(shape)
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=size.numel()).astype(bool)).view(size)
