"""What the files of a view of Taskonomy hold, and how they become images and targets of 256 x 256 pixels.

Images and labels are 512 x 512. As in the released code every second pixel of every second row is taken of
all of them, the image included, so that they stay aligned to the pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlprune_bench import Column, DataError, Labels, Place, Protocol, read_png

Array = NDArray[Any]
Pair = tuple[Array, Array]

STORED, SIZE = 512, 256
"""The side of the files' images and of those that are fed to networks, in pixels."""
CLASSES = 17
# semseg_prior_factor.npy of AdaShare's release, background first.
CLASS_WEIGHTS = (
    *(0.5424, 9.1674, 7.3310, 7.1620, 8.7229, 7.6133, 8.2369, 9.1486, 8.8220),
    *(9.0858, 8.9141, 9.1772, 9.0354, 8.6039, 9.1699, 9.1467, 9.1374),
)
UNCERTAIN = 0
"""The stored class of pixels that could be of any; the background, 1, is of none of the 16 kinds of objects."""
VOID = 255
ZERO = (127, 128)
"""The codes of 0 in a normal's component: 127 in the first release, 128 in the one rendered again."""
METRE = 512
"""A metre in stored depth."""
NO_DEPTH = 65_535
FAR = 64_500
"""Stored depth from which on the released code takes none: 126 m."""
LOG_RANGE = math.log(65_536)
CEILINGS = {"keypoints": 0.005, "edges": 0.08}
"""The strength that becomes 1. Files hold strengths times 65535, which the released code divides by 65536."""


def read_image(place: Place) -> Array:
    """Return an image, RGB uint8 [3, 256, 256]. Raises DataError."""
    return halve(read_png(place.path, "RGB"), place)


def halve(pixels: Array, place: Place) -> Array:
    """Return every second pixel of 512 x 512, [..., 256, 256]; 256 x 256 as they are. Raises DataError."""
    height, width = pixels.shape[-2:]
    if height != width or height not in (STORED, SIZE):
        raise DataError(
            f"{place} has {height} x {width} pixels; it must have {STORED} x {STORED}, or {SIZE} x {SIZE} where "
            "the files were made smaller. Replace the file."
        )
    step = height // SIZE
    return pixels[..., ::step, ::step]


def read_classes(place: Place) -> tuple[Array]:
    """Return the stored class of each pixel, uint8 [256, 256] in 0..17. Raises DataError."""
    classes = read_png(place.path, "L")
    if (highest := int(classes.max())) > CLASSES:
        raise DataError(
            f"{place} holds class {highest}; classes are 1 to {CLASSES}, and {UNCERTAIN} for uncertain. "
            "Replace the file."
        )
    return (halve(classes, place),)


def decode_classes(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return classes, int64 [H, W] in 0..16, the background first, and which pixels have one.

    Uncertain pixels have none, 255; a protocol may take them for background instead.
    """
    classes = stored[0].astype(np.int64) - 1
    uncertain = stored[0] == UNCERTAIN
    classes[uncertain] = 0 if protocol.merge_uncertain else VOID
    return classes, classes != VOID


def encode_classes(classes: Array, mask: Array) -> Array:
    """Return the stored classes, uint8 [H, W]."""
    stored: Array = np.where(mask, classes + 1, UNCERTAIN).astype(np.uint8)
    return stored


def read_normals(place: Place) -> tuple[Array]:
    """Return the codes of normals, uint8 [3, 256, 256]. Raises DataError."""
    return (halve(read_png(place.path, "RGB"), place),)


def decode_normals(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return unit normals, float32 [3, H, W] in the camera frame x right, y down, z forward, and where they are.

    Both protocols decode by n = code / 127.5 - 1. Codes of the zero vector are invalid and become 0, unless the
    protocol takes them for vectors too, as the released code does: then they point along a diagonal.
    """
    codes = stored[0]
    zero = ((codes == ZERO[0]) | (codes == ZERO[1])).all(0)
    mask = ~zero if protocol.decode_normals else np.ones(zero.shape, dtype=bool)
    vectors = codes.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
    return vectors / np.sqrt(np.square(vectors).sum(0)) * mask, mask


def encode_normals(normals: Array, mask: Array) -> Array:
    """Return the codes, uint8 [3, H, W], of unit normals; 128 where there are none."""
    codes: Array = np.where(mask, np.round((normals + 1) * 127.5).clip(0, 255), ZERO[1]).astype(np.uint8)
    return codes


def read_grey(place: Place) -> tuple[Array]:
    """Return a map as it is stored, uint16 [1, 256, 256]. Raises DataError, also where it has only 8 bits."""
    return (halve(read_png(place.path, "I;16"), place)[None],)


def log_code(stored: Array) -> Array:
    """Return stored depth as ln(1 + v) / ln 65536, float32 in [0, 1]."""
    return np.log1p(stored.astype(np.float32)) / np.float32(LOG_RANGE)


def metres(stored: Array) -> Array:
    """Return stored depth in metres, float32."""
    return stored.astype(np.float32) / np.float32(METRE)


DEPTH_UNITS: dict[str, tuple[Callable[[Array], Array], int]] = {
    "log code": (log_code, FAR),
    "m": (metres, NO_DEPTH),
}
"""By unit: how stored depth becomes it, and the stored value from which on there is no depth."""


def decode_depth(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return depth in the labels' unit, float32 [1, H, W], 0 where there is none, and where there is."""
    convert, end = DEPTH_UNITS[labels.unit]
    # 0 is no distance: an error relative to it would be infinite.
    mask = (stored[0] > 0) & (stored[0] < end)
    return convert(stored[0]) * mask, mask[0]


def encode_depth(depth: Array, mask: Array) -> Array:
    """Return the stored form, uint16 [H, W], of depth in metres [1, H, W]."""
    stored: Array = np.where(mask, np.round(METRE * depth[0]).clip(1, FAR - 1), NO_DEPTH).astype(np.uint16)
    return stored


def decode_strength(stored: tuple[Array, ...], labels: Labels, protocol: Protocol, ceiling: float) -> Pair:
    """Return a strength of 0 to `ceiling` or more as float32 [1, H, W] in [-1, 1], valid everywhere."""
    strength = stored[0].astype(np.float32) / np.float32(65_536)
    squashed = strength.clip(0, np.float32(ceiling)) / np.float32(ceiling) * np.float32(2) - np.float32(1)
    return squashed, np.ones(squashed.shape[1:], dtype=bool)


def encode_strength(squashed: Array, mask: Array, ceiling: float) -> Array:
    """Return the stored form, uint16 [H, W], of values [1, H, W] in [-1, 1]."""
    stored: Array = np.round((squashed[0] + 1) / 2 * ceiling * 65_536).astype(np.uint16)
    return stored


COLUMNS = {
    "segmentation": Column(read=read_classes, decode=decode_classes, classes=(CLASSES,)),
    "normals": Column(read=read_normals, decode=decode_normals),
    "depth": Column(read=read_grey, decode=decode_depth, units=tuple(DEPTH_UNITS)),
    **{
        task: Column(read=read_grey, decode=partial(decode_strength, ceiling=ceiling))
        for task, ceiling in CEILINGS.items()
    },
}
ENCODERS: dict[str, Callable[[Array, Array], Array]] = {
    "segmentation": encode_classes,
    "normals": encode_normals,
    "depth": encode_depth,
    **{task: partial(encode_strength, ceiling=ceiling) for task, ceiling in CEILINGS.items()},
}
"""By task: how a target and its mask become the pixels of a file."""
