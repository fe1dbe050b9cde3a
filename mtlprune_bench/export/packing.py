"""Packing: a pruned network in little room: of masked weights the values that are kept, and one bit a place."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlprune_bench.errors import UsageError
from mtlprune_bench.pruning.masks import Masks, pack, unpack
from mtlprune_bench.tensors import NamedTensors

DENSE, SHAPE, MASK, KEPT = "dense.", "shape.", "mask.", "kept."
"""What the names in a packed file begin with, before the name in the network.

`shape` is int64 [dimensions], `mask` uint8 [ceil(n / 8)] as `masks.pack` makes it, `kept` the values [k] where the
mask is true, in row-major order; `dense` is a tensor without a mask, as it is.
"""


INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Types that are copied as they are; a copy of half-precision numbers may change bits of what is no number."""


def _bits(tensor: Tensor) -> Tensor:
    """Return the same memory as integers."""
    return tensor.view(INTEGERS[tensor.element_size()])


def pack_weights(tensors: NamedTensors, masks: Masks) -> dict[str, Tensor]:
    """Return the named `tensors` packed, by the `masks` of some of them; what is removed has to be zero."""
    packed = {}
    for name, tensor in tensors.items():
        if name not in masks:
            packed[DENSE + name] = tensor
            continue
        packed[SHAPE + name] = torch.tensor(tensor.shape, dtype=torch.int64)
        packed[MASK + name] = pack(masks[name])
        packed[KEPT + name] = _bits(tensor)[masks[name].to(tensor.device)].view(tensor.dtype)
    return packed


def unpack_weights(packed: NamedTensors) -> dict[str, Tensor]:
    """Return the tensors that `pack_weights` made `packed` of, to the bit.

    Raises UsageError where `packed` is not of that form.
    """
    tensors = {}
    try:
        for key, tensor in packed.items():
            kind, _, name = key.partition(".")
            if f"{kind}." == DENSE:
                tensors[name] = tensor
            elif f"{kind}." == SHAPE:
                mask = unpack(packed[MASK + name], tensor.tolist())
                tensors[name] = torch.zeros(mask.shape, dtype=packed[KEPT + name].dtype)
                _bits(tensors[name])[mask] = _bits(packed[KEPT + name])
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise UsageError(f"'{key}' is not a packed weight: {error}. Only mtlbench export makes them.") from error
    return tensors
