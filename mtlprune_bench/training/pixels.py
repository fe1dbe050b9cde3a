"""Pixels: what every pixel of an image reads off a prediction, whose cells may each stand for several pixels.

Values are those of plain operations on whole images, to the bit; these only take their memory better.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

STRIP = 2**18
"""Numbers that a processor works on at once, so that what comes in between stays in its cache."""

LANES = 64
"""A multiple of the numbers that any processor computes in one go."""


def cells_of(prediction: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which cell of `prediction` [B, C, h, w] each pixel of its nearest enlargement to `size` = (H, W) is.

    Cells are counted along the rows of the prediction: int64 [H, W].
    """
    # torch itself says where it looks, as it rounds the factor between both sizes.
    numbers = torch.arange(prediction.shape[-2] * prediction.shape[-1], device=prediction.device)
    grid = numbers.view(1, 1, *prediction.shape[-2:])
    rows = F.interpolate(grid[..., :1].to(prediction.dtype), (size[0], 1), mode="nearest").long()
    columns = F.interpolate(grid[..., :1, :].to(prediction.dtype), (1, size[1]), mode="nearest").long()
    return (rows + columns)[0, 0]


def spread(values: Tensor, cells: Tensor | None) -> Tensor:
    """Return what each pixel shows of `values` [..., h, w]: [..., H, W]; themselves where `cells` is None."""
    if cells is None:
        return values
    # Rows of pixels are copies of few: first the columns, then whole rows.
    height, width = values.shape[-2:]
    rows, columns = cells[:, 0] // width, cells[0] % width
    wide = values.reshape(-1, width).index_select(1, columns)
    first = torch.arange(0, len(wide), height, device=cells.device)
    return wide.index_select(0, (first[:, None] + rows).flatten()).view(*values.shape[:-2], *cells.shape)


def tally(classes: Tensor, mask: Tensor, shown: Tensor, count: int, size: int) -> Tensor:
    """Return how many valid pixels of each of `count` classes show each of `size` things: int64 [B, count, size].

    `classes` and what is `shown`, int64, and `mask`, bool, are [B, H, W]; what all show alike may be [H, W].
    Classes and things are counted from 0, outside the mask too.
    """
    beyond = len(classes) * count * size
    first = torch.arange(0, beyond, count * size, device=classes.device)
    places = torch.add(shown + first[:, None, None], classes, alpha=size)
    # What is not valid is counted too, beyond the others: to leave it out takes longer.
    counts = torch.bincount(places.masked_fill_(~mask, beyond).flatten(), minlength=beyond + 1)
    return counts[:-1].view(len(classes), count, size)


def picked(values: Tensor, places: Tensor) -> Tensor:
    """Return `values` [B, C, H, W] at `places` [N], counted over images, rows and columns: [C, N]."""
    return values.transpose(0, 1).flatten(1).index_select(1, places)


def in_strips(function: Callable[..., Tensor], prediction: Tensor, *others: Tensor) -> Tensor:
    """Return `function(prediction [B, C, P], *others [B, P])` [B, P], made of one strip of pixels after another.

    The function has to treat each pixel by itself.
    """
    pixels = max(1, STRIP // (LANES * prediction[..., 0].numel())) * LANES
    if prediction.is_cuda or pixels >= prediction.shape[-1]:
        return function(prediction, *others)
    strips = zip(*(torch.split(tensor, pixels, -1) for tensor in (prediction, *others)), strict=True)
    return torch.cat([function(*strip) for strip in strips], -1)


def best_class(scores: Tensor) -> Tensor:
    """Return the class with the highest of `scores` [B, C, H, W], the first of equals: int64 [B, H, W]."""
    if scores.is_cuda:
        return scores.argmax(1)
    return in_strips(_first_highest, scores.flatten(2)).view(len(scores), *scores.shape[2:])


def _first_highest(scores: Tensor) -> Tensor:
    # On a CPU argmax over channels looks at one number after the other; these operations take many at a time.
    count = scores.shape[1]
    places = torch.arange(count, 0, -1, dtype=torch.uint8 if count < 256 else torch.int32)[:, None]
    found = (places * (scores == scores.amax(1, keepdim=True))).amax(1)
    # A score that is not a number equals none, not even itself.
    return count - found.long() if bool(found.all()) else scores.argmax(1)


def surprise(scores: Tensor, classes: Tensor) -> Tensor:
    """Return the cross-entropy of each pixel, in nats [B, H, W], of `scores` [B, C, H, W] and int64 `classes`."""
    return in_strips(_surprise, scores.flatten(2), classes.flatten(1)).view_as(classes)


def _surprise(scores: Tensor, classes: Tensor) -> Tensor:
    return -F.log_softmax(scores, 1).gather(1, classes[:, None])[:, 0]
