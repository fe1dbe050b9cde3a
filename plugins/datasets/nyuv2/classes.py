"""The classes of NYU-v2: 40 by Gupta et al. (CVPR 2013), and the 13 of Couprie et al. (ICLR 2013)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlprune_bench import Labels, Protocol

Array = NDArray[Any]

VOID = 255
"""The stored class of pixels that have none."""

# class13Mapping.mat of github.com/ankurhanda/nyuv2-meta-data, which counts from 1 on both sides.
THIRTEEN_OF_FORTY = (
    *(12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5),
    *(7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7),
)


@functools.cache
def table(classes: int) -> NDArray[np.int64]:
    """Return which of `classes` (40 or 13) each stored class, 0 to 39, becomes: [256]; 255 stays."""
    mapped = np.full(256, VOID, dtype=np.int64)
    mapped[:40] = np.arange(40) if classes == 40 else np.array(THIRTEEN_OF_FORTY) - 1
    return mapped


def decode_forty(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> tuple[Array, Array]:
    """Return the classes of stored 40-class labels, and which pixels have one."""
    classes = table(labels.classes).take(stored[0])
    return classes, classes != VOID
