"""The classes of Cityscapes: the 19 that are evaluated, and the 7 categories of the labels that they come from.

Both are tables over the labels 0 to 33 that are drawn in gtFine (cityscapesScripts, helpers/labels.py). The 7
categories take in all drawn labels but the void ones, so also parking, rail track, guard rail, bridge, tunnel,
pole group, caravan and trailer, which have no class among the 19.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlprune_bench import Labels, Protocol

Array = NDArray[Any]
Pair = tuple[Array, Array]

VOID = -1
"""The class of pixels that have none."""
LABELS = 34
LABEL_OF_NINETEEN = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
# Labels in a row share a category: void, flat, construction, object, nature, sky, human, vehicle.
CATEGORY_LENGTHS = (7, 4, 6, 4, 2, 1, 2, 8)


@functools.cache
def table(classes: int) -> NDArray[np.int64]:
    """Return which of `classes` (19 or 7) each label is, int64 [34], -1 for none."""
    if classes == 7:
        return np.repeat(np.arange(VOID, 7), CATEGORY_LENGTHS)
    mapped = np.full(LABELS, VOID)
    mapped[list(LABEL_OF_NINETEEN)] = np.arange(classes)
    return mapped


def decode_labels(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return the classes, int64 [H, W], of stored labels 0 to 33, and which pixels have one."""
    classes = table(labels.classes)[stored[0]]
    return classes, classes != VOID


def encode_labels(classes: Array) -> Array:
    """Return the labels, uint8 [H, W], of 19 classes; 0, unlabelled, for none."""
    # The class of none, -1, takes the last entry.
    return np.array((*LABEL_OF_NINETEEN, 0), dtype=np.uint8)[classes]


def seven_of_nineteen(classes: Array) -> Array:
    """Return the category, int64 [H, W], of each of 19 classes, -1 where there is none."""
    return table(7)[encode_labels(classes)]
