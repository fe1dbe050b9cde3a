"""NYU-v2 as MTAN and LibMTL ship it: NumPy files, numbered from 0 in each split.

train/image/0.npy     float [288, 384, 3], RGB in [0, 1]
train/label/0.npy     [288, 384], class 0 to 12, -1 where a pixel has none
train/depth/0.npy     float [288, 384, 1], metres, 0 where there is none
train/normal/0.npy    float [288, 384, 3], vectors, 0 where there is none; x, which grows to the right, is first
val/...               the same of the official test split

Which way the other two components of the normals point is documented nowhere; they are taken as they are, and
no angle depends on it. The files are vectors, not codes, so they are unit vectors under every protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlprune_bench import (
    Column,
    DataError,
    Entry,
    Index,
    Labels,
    Layout,
    Place,
    Protocol,
    Sample,
    inside,
    numbered,
    read_npy,
    write_npy,
)

from .adashare import decode_depth
from .classes import VOID

Array = NDArray[Any]
Pair = tuple[Array, Array]

SPLITS = {"train": "train", "test": "val"}
FOLDERS = {"image": "image", "segmentation": "label", "normals": "normal", "depth": "depth"}
CLASSES = 13


def index(root: Path, tasks: tuple[str, ...]) -> Index:
    """Return the images of both splits. Raises DataError where a folder cannot be listed."""
    return Index(train=_entries(root, "train", tasks), test=_entries(root, "test", tasks))


def _entries(root: Path, split: str, tasks: tuple[str, ...]) -> tuple[Entry, ...]:
    folder = SPLITS[split]
    names = numbered(root / folder / FOLDERS["image"], ".npy")
    return tuple(
        {
            column: (Place(inside(root, f"{folder}/{FOLDERS[column]}/{name}.npy", f"The folder {root}")),)
            for column in ("image", *tasks)
        }
        for name in names
    )


def read_image(place: Place) -> Array:
    """Return an image, RGB uint8 [3, H, W], from numbers in [0, 1] or 8-bit ones. Raises DataError."""
    pixels = _channels(place, 3, "fu")
    if pixels.dtype == np.uint8:
        return pixels
    levels = np.rint(pixels * 255.0)
    if not ((levels >= 0) & (levels <= 255)).all():
        raise DataError(
            f"{place} holds {pixels.min():g} to {pixels.max():g}; images are 0 to 1. Replace the file."
        )
    return levels.astype(np.uint8)


def read_classes(place: Place) -> tuple[Array]:
    """Return the class of each pixel, int8 [H, W], -1 where it has none. Raises DataError."""
    classes = read_npy(place.path, 2, "fiu")
    if (wrong := classes[~np.isin(classes, np.arange(-1, CLASSES))]).size:
        raise DataError(f"{place} holds class {wrong[0]:g}; classes are 0 to {CLASSES - 1}, and -1 for none.")
    return (classes.astype(np.int8),)


def decode_classes(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return the classes, int64 [H, W], and which pixels have one."""
    classes = stored[0].astype(np.int64)
    mask = classes >= 0
    return np.where(mask, classes, VOID), mask


def read_normals(place: Place) -> tuple[Array]:
    """Return normals as they are stored, float32 [3, H, W]. Raises DataError."""
    return (_channels(place, 3, "f").astype(np.float32),)


def decode_normals(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return unit normals, float32 [3, H, W], and where there are any: vectors that are finite and not 0.

    The released code asks for components whose sum is not 0, which leaves out some unit vectors too.
    """
    mask = np.isfinite(stored[0]).all(0) & (stored[0] != 0).any(0)
    vectors = np.where(mask, stored[0], 0).astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=0) + ~mask
    return (vectors / lengths).astype(np.float32), mask


def read_depth(place: Place) -> tuple[Array]:
    """Return depth in metres, float32 [1, H, W]. Raises DataError."""
    return (_channels(place, 1, "f").astype(np.float32),)


def _channels(place: Place, count: int, kinds: str) -> Array:
    """Return an array [H, W, `count`] as [`count`, H, W]. Raises DataError where it has another form."""
    array = read_npy(place.path, 3, kinds)
    if array.shape[-1] != count or (array.dtype.kind == "u" and array.dtype != np.uint8):
        raise DataError(
            f"{place} holds {array.dtype} {list(array.shape)}; this layout has {count} channels, last, of "
            "floating-point numbers" + (" or 8 bits" if "u" in kinds else "") + ". Replace the file."
        )
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def write(root: Path, splits: Mapping[str, Sequence[Sample]]) -> None:
    """Write samples in this layout."""
    for split, samples in splits.items():
        for number, sample in enumerate(samples):
            targets = {task: target.numpy() for task, target in sample.targets.items()}
            masks = {task: mask.numpy() for task, mask in sample.masks.items()}
            stored = {
                "image": sample.image.numpy().transpose(1, 2, 0) / np.float32(255),
                "segmentation": np.where(masks["segmentation"], targets["segmentation"], -1).astype(np.float32),
                "normals": (targets["normals"] * masks["normals"]).transpose(1, 2, 0),
                "depth": (targets["depth"] * masks["depth"]).transpose(1, 2, 0),
            }
            for column, array in stored.items():
                write_npy(root / SPLITS[split] / FOLDERS[column] / f"{number}.npy", array)


MTAN = Layout(
    name="mtan",
    description="as MTAN and LibMTL ship it: folders train and val of numbered NumPy files",
    source="https://www.dropbox.com/s/p2nn02wijg7peiy/nyuv2.zip (github.com/lorenmt/mtan)",
    signs=("train/image", "train/label", "train/normal", "val/image"),
    hints=("train/depth", "val/label", "val/normal", "val/depth"),
    index=index,
    image=read_image,
    columns={
        "segmentation": Column(read=read_classes, decode=decode_classes, classes=(CLASSES,)),
        "normals": Column(read=read_normals, decode=decode_normals),
        "depth": Column(read=read_depth, decode=decode_depth, units=("m",)),
    },
    size=(288, 384),
    write=write,
    writes=(Labels("segmentation", classes=CLASSES), Labels("normals"), Labels("depth", unit="m")),
)
