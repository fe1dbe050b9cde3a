"""Ranks: what a voter wants, on a scale that all voters share."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlprune_bench.tensors import NamedTensors


def ranks(scores: NamedTensors) -> dict[str, Tensor]:
    """Return the rank of every score among all of them, in (0, 1]: 1 is the best, 1/n the worst of n.

    `scores` are tensors of any shape, higher = keep; the ranks have their shapes, as float64 (float32 would
    merge neighbours beyond 16 million weights). Of equal scores the one that comes first, in the order of
    the mapping and within a tensor in row-major order, ranks higher.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    order = torch.sort(flat, descending=True, stable=True).indices
    count = flat.numel()
    ranked = torch.empty(count, dtype=torch.float64, device=flat.device)
    ranked[order] = torch.arange(count, 0, -1, dtype=torch.float64, device=flat.device) / count
    sizes = [score.numel() for score in scores.values()]
    return {
        name: part.view_as(scores[name]) for name, part in zip(scores, torch.split(ranked, sizes), strict=True)
    }
