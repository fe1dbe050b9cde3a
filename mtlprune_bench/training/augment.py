"""Augmentation: random enlargement, mirror and crop, as one lookup from the crop into the source image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlprune_bench.data.formats import Array


@dataclass(frozen=True)
class Warp:
    """Which part of which enlargement of an image becomes the crop.

    The image of `size` = (H, W) is enlarged to `enlarged`, padded evenly where that is smaller than the
    square `crop`, cut from row `top` and column `left` on, and mirrored if `mirror`.
    """

    size: tuple[int, int]
    enlarged: tuple[int, int]
    crop: int
    top: int
    left: int
    mirror: bool

    @property
    def scale(self) -> float:
        """Return the factor by which the image was enlarged."""
        return self.enlarged[0] / self.size[0]

    @cached_property
    def positions(self) -> tuple[Tensor, Tensor]:
        """Return the rows and columns of the enlarged image in the crop, int64 [crop]; out of range: padding."""
        rows = torch.arange(self.crop) + self.top - max(self.crop - self.enlarged[0], 0) // 2
        columns = torch.arange(self.crop) + self.left - max(self.crop - self.enlarged[1], 0) // 2
        return rows, columns.flip(0) if self.mirror else columns

    @cached_property
    def shown(self) -> tuple[slice, slice]:
        """Return the rows and columns of the crop that show the image; the rest is padding."""
        heights, widths = (min(length, self.crop) for length in self.enlarged)
        above, left = (self.crop - heights) // 2, (self.crop - widths) // 2
        if self.mirror:
            left = self.crop - widths - left
        return slice(above, above + heights), slice(left, left + widths)


def draw_warp(
    generator: torch.Generator, size: tuple[int, int], crop: int, scales: tuple[float, float], mirror: float
) -> Warp:
    """Return a random warp: scale uniform in `scales`, mirrored with probability `mirror`."""
    scale, mirrored, top, left = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    factor = scales[0] + scale * (scales[1] - scales[0])
    height, width = (max(int(side * factor), 1) for side in size)
    return Warp(
        size=size,
        enlarged=(height, width),
        crop=crop,
        top=int(top * (max(height - crop, 0) + 1)),
        left=int(left * (max(width - crop, 0) + 1)),
        mirror=mirrored < mirror,
    )


def warp_image(image: Tensor, warp: Warp, fill: Tensor) -> Tensor:
    """Return the crop [C, crop, crop] of `image` [C, H, W], float32, bilinear; padding has the colour `fill` [C].

    Equal to enlarging the whole image (half-pixel centres, no antialiasing) and then cutting.
    """
    rows, columns = (
        _neighbours(positions[shown], warp.size[axis], warp.enlarged[axis])
        for axis, (positions, shown) in enumerate(zip(warp.positions, warp.shown, strict=True))
    )
    top, bottom = int(rows[0].min()), int(rows[1].max()) + 1
    first, last = int(columns[0].min()), int(columns[1].max()) + 1
    values = image[:, top:bottom, first:last].float()
    values = _interpolate(values, 1, rows[0] - top, rows[1] - top, rows[2])
    values = _interpolate(values, 2, columns[0] - first, columns[1] - first, columns[2])
    if values.shape[1:] == (warp.crop, warp.crop):
        return values
    crop = fill[:, None, None].repeat(1, warp.crop, warp.crop)
    crop[:, *warp.shown] = values
    return crop


def _neighbours(positions: Tensor, length: int, enlarged: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return between which two of `length` pixels the `positions` of their enlargement lie, and how far along."""
    source = ((positions + 0.5) * (length / enlarged) - 0.5).clamp(0, length - 1)
    below = source.floor().long()
    return below, (below + 1).clamp(max=length - 1), source - below


def _interpolate(image: Tensor, dimension: int, below: Tensor, above: Tensor, weight: Tensor) -> Tensor:
    """Return float32 `image` [C, H, W] along `dimension`, `weight` of the way from `below` to `above`."""
    shape = [-1 if axis == dimension else 1 for axis in range(image.ndim)]
    # Of the ways to pick columns NumPy's is the fastest by far; rows are copied whole by either library.
    low, high = (
        torch.from_numpy(image.numpy().take(ends.numpy(), dimension, mode="clip")) for ends in (below, above)
    )
    return torch.lerp(low, high, weight.view(shape).to(low.dtype))


def warp_labels(labels: Array, warp: Warp, resize: str) -> Array:
    """Return the crop [..., crop, crop] of `labels` [..., H, W], nearest neighbour; padding holds some label.

    With `resize` "aligned" a pixel of the crop reads the source pixel below its centre, as the image does;
    "nearest" is floor(i H / h), of OpenCV and torch, up to half a pixel beside it.
    """
    rows, columns = _sources(warp, resize)
    # One axis after the other is several times as fast as both at once.
    return labels.take(rows, axis=-2).take(columns, axis=-1)


@lru_cache(maxsize=8)
def _sources(warp: Warp, resize: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows and the columns of the source image that a crop shows; the same for all labels of it."""
    rows, columns = (
        _nearest(positions, warp.size[axis], warp.enlarged[axis], resize)
        for axis, positions in enumerate(warp.positions)
    )
    return rows, columns


def _nearest(positions: Tensor, length: int, enlarged: int, resize: str) -> NDArray[np.int64]:
    """Return which of `length` pixels the `positions` of their enlargement to `enlarged` show."""
    if resize == "nearest":
        source = positions * length // enlarged
    else:
        source = (2 * positions + 1) * length // (2 * enlarged)
    return source.clamp(0, length - 1).numpy()


def inside(warp: Warp) -> Tensor:
    """Return which pixels of the crop show the image, bool [crop, crop]; the rest is padding."""
    shown = torch.zeros(warp.crop, warp.crop, dtype=torch.bool)
    shown[warp.shown] = True
    return shown
