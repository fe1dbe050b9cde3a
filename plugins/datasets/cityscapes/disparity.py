"""Stereo disparity as Cityscapes stores it: p in 16 bits, 0 where it is not known, else 256 d + 1 for d pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pair = tuple[Array, Array]

UNIT = "disparity/65535"
TOP = 65535
STEPS = 256
"""Steps of p in one pixel of disparity."""
LEAST = 3e-5
"""Disparity over 65535 above which a pixel counts as measured, as in the released code.

It keeps p from 2 on: p = 0 is no measurement, p = 1 is disparity 0, a point infinitely far away, by which no
relative error can be divided. So it holds under every protocol.
"""


def decode_fractions(fractions: Array) -> Pair:
    """Return p / 65535, float32 [1, H, W], 0 where there is none, and where there is: bool [H, W]."""
    mask = fractions > LEAST
    return np.where(mask, fractions, np.float32(0)), mask[0]


def decode_metres(stored: Array, factor: Array) -> Pair:
    """Return depth in metres, float32 [1, H, W], 0 where there is none, and where there is: bool [H, W].

    `stored` is p, `factor` the baseline in metres times the focal length in pixels. Depth is factor / d.
    """
    mask = stored > 1
    steps = np.where(mask, stored, 2).astype(np.float32) - 1
    return np.where(mask, factor * np.float32(STEPS) / steps, np.float32(0)), mask[0]


def encode_fractions(target: Array, mask: Array) -> Array:
    """Return p, uint16 [1, H, W], of p / 65535, 0 where `mask` [H, W] is false."""
    stored = np.rint(target * TOP).clip(2, TOP)
    return np.where(mask, stored, 0).astype(np.uint16)
