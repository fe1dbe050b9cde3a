"""NumPy files of images, classes and disparity, in which MTAN and AdaShare ship Cityscapes.

image/0.npy      RGB in [0, 1] (or uint8) [H, W, 3]
label_2/0.npy    0 background, 1 humans and vehicles, -1 none [H, W]; not read
label_7/0.npy    0 to 6 or -1 [H, W]
label_19/0.npy   0 to 18 or -1 [H, W]
depth/0.npy      stereo disparity, what the official PNG file stores over 65535, 0 where there is none [H, W, 1]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlprune_bench import Column, DataError, Labels, Place, Protocol, Sample, read_npy, write_npy

from .classes import VOID, seven_of_nineteen
from .disparity import TOP, UNIT, decode_fractions, encode_fractions

Array = NDArray[Any]
Pair = tuple[Array, Array]

COUNTS = (7, 19)
"""The numbers of classes, in the order in which a layout stores them; it may leave out the last."""
FIRST_FOREGROUND = 5
"""Of the 7 classes, from this one on: humans and vehicles."""


def read_image(place: Place) -> Array:
    """Return an image, RGB uint8 [3, H, W]. Raises DataError."""
    pixels = read_npy(place.path, 3, "fu")
    if pixels.shape[-1] != 3:
        raise DataError(f"{place} has {pixels.shape[-1]} channels; an image has 3, its last axis.")
    if pixels.dtype != np.uint8:
        check(place, pixels, (pixels >= 0) & (pixels <= 1), "colour", "0 to 1")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def check(place: Place, values: Array, good: Array, what: str, known: str) -> None:
    """Raise DataError with the first of `values` that is not `good`, if any: `what` it is, and what is `known`."""
    if not good.all():
        raise DataError(f"{place} holds {what} {values[~good][0]:g}; known are {known}. Replace the file.")


def read_classes(*places: Place) -> tuple[Array, ...]:
    """Return the classes of each pixel, int8 [H, W], -1 for none: first of 7, then of 19. Raises DataError."""
    return tuple(_read_classes(place, count) for place, count in zip(places, COUNTS, strict=False))


def _read_classes(place: Place, count: int) -> Array:
    classes = read_npy(place.path, 2, "fiu")
    good = (classes >= VOID) & (classes < count) & (np.rint(classes) == classes)
    check(place, classes, good, "class", f"0 to {count - 1}, and {VOID} for none")
    return classes.astype(np.int8)


def decode_classes(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return the classes, int64 [H, W], of the map with as many as `labels` has, and which pixels have one."""
    classes = stored[COUNTS.index(labels.classes)].astype(np.int64)
    return classes, classes != VOID


def read_disparity(place: Place) -> tuple[Array]:
    """Return disparity over 65535, float32 [1, H, W]. Raises DataError."""
    try:
        values = read_npy(place.path, 3)
    except DataError:
        # Without a last axis of 1 the numbers are the same.
        values = read_npy(place.path, 2)[..., None]
    if values.shape[-1] != 1:
        raise DataError(f"{place} has {values.shape[-1]} channels; disparity has one, its last axis.")
    check(place, values, (values >= 0) & (values <= 1), "disparity", f"0 to 1, what a PNG file stores over {TOP}")
    return (values.astype(np.float32).transpose(2, 0, 1),)


def decode_disparity(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return disparity over 65535, float32 [1, H, W], 0 where there is none, and where there is."""
    return decode_fractions(stored[0])


def columns(classes: tuple[int, ...]) -> dict[str, Column]:
    """Return the columns of a layout that stores maps of `classes` classes: (7,) or (7, 19)."""
    return {
        "segmentation": Column(read=read_classes, decode=decode_classes, classes=classes),
        "depth": Column(read=read_disparity, decode=decode_disparity, units=(UNIT,)),
    }


def write_sample(folder: Path, number: int, sample: Sample, maps: Mapping[str, Array]) -> None:
    """Write a sample as file `number` of each kind, its classes as the `maps` [H, W], by folder."""
    disparity = encode_fractions(sample.targets["depth"].numpy(), sample.masks["depth"].numpy())
    image = sample.image.numpy().astype(np.float32) / np.float32(255)
    name = f"{number}.npy"
    write_npy(folder / "image" / name, image.transpose(1, 2, 0))
    write_npy(folder / "depth" / name, (disparity / np.float32(TOP)).transpose(1, 2, 0))
    for kind, classes in maps.items():
        write_npy(folder / kind / name, classes.astype(np.int8))


def classes_of(sample: Sample) -> Array:
    """Return the classes of a sample, int64 [H, W], -1 where there is none."""
    classes: Array = np.where(sample.masks["segmentation"], sample.targets["segmentation"], VOID)
    return classes


def maps_of(nineteen: Array) -> dict[str, Array]:
    """Return the maps of 2, 7 and 19 classes, by folder, of 19 classes int64 [H, W], -1 for none."""
    seven = seven_of_nineteen(nineteen)
    two = np.where(seven == VOID, VOID, seven >= FIRST_FOREGROUND)
    return {"label_2": two, "label_7": seven, "label_19": nineteen}
