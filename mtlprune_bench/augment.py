"""Augmentation: random enlargement, mirror and crop, as one lookup from the crop into the source image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def positions(self) -> tuple[Tensor, Tensor]:
        """Return the rows and columns of the enlarged image in the crop, int64 [crop]; out of range: padding."""
        rows = torch.arange(self.crop) + self.top - max(self.crop - self.enlarged[0], 0) // 2
        columns = torch.arange(self.crop) + self.left - max(self.crop - self.enlarged[1], 0) // 2
        return rows, columns.flip(0) if self.mirror else columns


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
    rows, columns = warp.positions()
    values = _interpolate(image.float(), 1, rows, warp.enlarged[0])
    values = _interpolate(values, 2, columns, warp.enlarged[1])
    return torch.where(_inside(warp), values, fill[:, None, None])


def _interpolate(image: Tensor, dimension: int, positions: Tensor, enlarged: int) -> Tensor:
    """Return `image` along `dimension` read at `positions` of its enlargement to `enlarged` pixels."""
    length = image.shape[dimension]
    source = ((positions + 0.5) * (length / enlarged) - 0.5).clamp(0, length - 1)
    below = source.floor().long()
    above = (below + 1).clamp(max=length - 1)
    weight = (source - below).to(image.dtype)
    weight = weight.view([-1 if axis == dimension else 1 for axis in range(image.ndim)])
    return torch.lerp(image.index_select(dimension, below), image.index_select(dimension, above), weight)


def warp_labels(labels: Tensor, warp: Warp, resize: str) -> Tensor:
    """Return the crop [..., crop, crop] of `labels` [..., H, W], nearest neighbour; padding holds some label.

    With `resize` "aligned" a pixel of the crop reads the source pixel below its centre, as the image does;
    "nearest" is floor(i H / h), of OpenCV and torch, up to half a pixel beside it.
    """
    rows, columns = (
        _nearest(positions, warp.size[axis], warp.enlarged[axis], resize)
        for axis, positions in enumerate(warp.positions())
    )
    return labels[..., rows[:, None], columns]


def _nearest(positions: Tensor, length: int, enlarged: int, resize: str) -> Tensor:
    """Return which of `length` pixels the `positions` of their enlargement to `enlarged` show."""
    if resize == "nearest":
        source = positions * length // enlarged
    else:
        source = (2 * positions + 1) * length // (2 * enlarged)
    return source.clamp(0, length - 1)


def warp_mask(mask: Tensor, warp: Warp, resize: str) -> Tensor:
    """Return the crop [crop, crop] of a boolean `mask` [H, W], as `warp_labels` does; padding is False."""
    return warp_labels(mask, warp, resize) & _inside(warp)


def _inside(warp: Warp) -> Tensor:
    """Return which pixels of the crop show the image, bool [crop, crop]."""
    rows, columns = warp.positions()
    inside_rows = (rows >= 0) & (rows < warp.enlarged[0])
    inside_columns = (columns >= 0) & (columns < warp.enlarged[1])
    return inside_rows[:, None] & inside_columns
