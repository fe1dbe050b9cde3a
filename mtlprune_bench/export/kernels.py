"""Sparse kernels: layers that skip weights that are zero, as products with matrices in compressed rows (CSR)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlprune_bench.pruning.masks import Masks

INDEX = torch.int32
"""The type of indices: half the memory of int64, and what the kernels of CPUs compute with."""


def compressed(weight: Tensor) -> Tensor:
    """Return the matrix [rows, everything else] of `weight` in compressed rows, its zeros left out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        full = weight.detach().flatten(1).to_sparse_csr()
        indices = full.crow_indices().to(INDEX), full.col_indices().to(INDEX)
        return torch.sparse_csr_tensor(*indices, full.values(), full.shape, check_invariants=True)


class SparseLinear(nn.Module):
    """A linear layer [..., in] to [..., out] of the weights of `layer` that are not zero."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = compressed(layer.weight)
        self.bias = layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        outputs = (self.weight @ rows.T).T.reshape(*inputs.shape[:-1], -1)
        return outputs if self.bias is None else outputs + self.bias


class SparseConv2d(nn.Module):
    """A convolution [B, in, H, W] to [B, out, h, w] of the weights of `layer` that are not zero.

    The image under the kernel at each place is a column of a matrix; a 1 x 1 kernel needs none to be made.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight = compressed(layer.weight)
        self.bias = layer.bias
        self.kernel, self.stride = (
            cast("tuple[int, int]", layer.kernel_size),
            cast("tuple[int, int]", layer.stride),
        )
        self.padding = cast("tuple[int, int]", layer.padding)
        self.dilation = cast("tuple[int, int]", layer.dilation)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs."""
        if self.kernel == (1, 1) and self.padding == (0, 0):
            columns = inputs[:, :, :: self.stride[0], :: self.stride[1]].flatten(2)
        else:
            columns = F.unfold(inputs, self.kernel, self.dilation, self.padding, self.stride)
        outputs = torch.stack([self.weight @ image for image in columns])
        outputs = outputs.reshape(*outputs.shape[:2], *self._size(inputs))
        return outputs if self.bias is None else outputs + self.bias[:, None, None]

    def _size(self, inputs: Tensor) -> tuple[int, int]:
        """Return the height and width of the outputs."""
        height, width = (
            (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for length, padding, dilation, kernel, stride in zip(
                inputs.shape[-2:], self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return height, width


@dataclass(frozen=True)
class SparseCopy:
    """A network with sparse layers in the place of those that have zeros, and the names of those that cannot."""

    network: nn.Module
    replaced: tuple[str, ...]
    left: tuple[str, ...]


def sparse_copy(network: nn.Module, masks: Masks) -> SparseCopy:
    """Return a copy of `network` in which the layers that `masks` prune skip their zeros.

    Left as they are: layers of other types than a plain linear one or a convolution in two dimensions,
    convolutions in groups, and padding with anything but a number of zeros. Raises RuntimeError where torch cannot
    make sparse matrices on this device.
    """
    made = copy.deepcopy(network)
    replaced, left = list[str](), list[str]()
    for name, module in list(made.named_modules()):
        mask = masks.get(f"{name}.weight")
        if mask is None or bool(mask.all()):
            continue
        sparse = _sparse(module)
        (left if sparse is None else replaced).append(name)
        if sparse is not None:
            parent, _, own = name.rpartition(".")
            setattr(made.get_submodule(parent), own, sparse)
    return SparseCopy(made, tuple(replaced), tuple(left))


def _sparse(layer: nn.Module) -> nn.Module | None:
    """Return a layer that skips zeros in the place of `layer`, None where there is none."""
    if type(layer) is nn.Linear:
        return SparseLinear(layer)
    plain = type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
    if plain and isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str):
        return SparseConv2d(layer)
    return None


def held_bytes(network: nn.Module) -> int:
    """Return the bytes of all weights and buffers of `network`, of sparse layers those of values and indices."""
    total = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    for layer in network.modules():
        if isinstance(layer, SparseLinear | SparseConv2d):
            matrix = layer.weight
            total += sum(part.nbytes for part in (matrix.values(), matrix.crow_indices(), matrix.col_indices()))
    return total


def two_of_four(masks: Masks) -> int:
    """Return how many of `masks` keep at most two of any four weights, as the 2:4 kernels of GPUs need.

    The four are neighbours among the weights of one output, whose number must be a multiple of 4.
    """
    return sum(_fits(mask.flatten(1)) for mask in masks.values())


def _fits(mask: Tensor) -> bool:
    return mask.shape[1] % 4 == 0 and bool((mask.reshape(-1, 4).sum(-1) <= 2).all())


def pruned(masks: Masks) -> Mapping[str, Tensor]:
    """Return those of `masks` that remove something."""
    return {name: mask for name, mask in masks.items() if not mask.all()}
