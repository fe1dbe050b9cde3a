"""NYU-v2 as AdaShare and DiSparse ship it: an index in JSON beside folders of PNG and NumPy files.

nyu_v2_3task.json       {"train": [[image, classes, normals, depth], ...], "test": [...]}, paths relative to it
img/0061.png            RGB uint8
seg/0061.png            uint8, class 0 to 39, 255 where a pixel has none
normal_mask/0061.png    RGB uint8, floor((n + 1) * 127.5): x right, z forward, y up; white where there is none
depth/0061.npy          float32, metres
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlprune_bench import (
    Column,
    DataError,
    Index,
    Labels,
    Layout,
    Place,
    Protocol,
    Sample,
    read_index,
    read_npy,
    read_png,
    write_npy,
    write_png,
    write_text,
)

from .classes import VOID, decode_forty

Array = NDArray[Any]
Pair = tuple[Array, Array]

INDEX = "nyu_v2_3task.json"
COLUMNS = ("image", "segmentation", "normals", "depth")
FOLDERS = {"image": "img", "segmentation": "seg", "normals": "normal_mask", "depth": "depth"}
CLASSES = 40
ZERO = 127
"""The code of 0 in a normal's component."""
NEAREST = 3e-5
"""Depth in metres above which a pixel counts as measured, as in the released code."""


def index(root: Path, tasks: tuple[str, ...]) -> Index:
    """Return the images that the index lists. Raises DataError where it is damaged."""
    return read_index(root / INDEX, COLUMNS, tasks, {"train": "train", "test": "test"})


def read_image(place: Place) -> Array:
    """Return an image, RGB uint8 [3, H, W]. Raises DataError."""
    return read_png(place.path, "RGB")


def read_classes(place: Place) -> tuple[Array]:
    """Return the class of each pixel, uint8 [H, W], 255 where it has none. Raises DataError."""
    classes = read_png(place.path, "L")
    if (wrong := classes[(classes >= CLASSES) & (classes != VOID)]).size:
        raise DataError(
            f"{place} holds class {int(wrong[0])}; classes are 0 to {CLASSES - 1}, and {VOID} for none."
        )
    return (classes,)


def read_normals(place: Place) -> tuple[Array]:
    """Return the codes of normals, uint8 [3, H, W]. Raises DataError."""
    return (read_png(place.path, "RGB"),)


def decode_normals(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return unit normals, float32 [3, H, W], 0 where there are none, and where there are.

    Decoded by n = (code + 0.5) / 127.5 - 1 they are in the camera frame x right, y down, z forward. A
    protocol that does not decode takes the codes for vectors, as the released code does by normalising what
    OpenCV reads: blue first. The order changes no angle, as predictions learn the same one, but it names the
    axes: (up, forward, right). Codes of the zero vector then count as valid.
    """
    codes = stored[0]
    mask = codes.max(0) != VOID
    if protocol.decode_normals:
        mask &= (codes != ZERO).any(0)
        vectors = codes[[0, 2, 1]].astype(np.float32)  # right, up, forward
        vectors += np.float32(0.5)
        vectors /= np.float32(127.5)
        vectors -= np.float32(1)
        np.negative(vectors[1], out=vectors[1])
    else:
        vectors = codes[::-1].astype(np.float32)
    lengths = np.sqrt(np.square(vectors).sum(0)).clip(min=1e-6)
    lengths[~mask] = np.inf
    vectors /= lengths
    return vectors, mask


def encode_normals(normals: Array, mask: Array) -> Array:
    """Return the codes, uint8 [3, H, W], of normals in the camera frame; white where there are none."""
    right, down, forward = normals
    codes = np.floor((np.stack([right, forward, -down]) + 1) * 127.5)
    coded: Array = np.where(mask, codes.clip(0, 254), VOID).astype(np.uint8)
    return coded


def read_depth(place: Place) -> tuple[Array]:
    """Return depth in metres, float32 [1, H, W]. Raises DataError."""
    return (read_npy(place.path, 2).astype(np.float32)[None],)


def decode_depth(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return depth in metres, float32 [1, H, W], 0 where there is none, and where there is."""
    depth = stored[0].astype(np.float32)
    mask = np.isfinite(depth) & (depth > NEAREST)
    return np.where(mask, depth, np.float32(0)), mask[0]


def write(root: Path, splits: Mapping[str, Sequence[Sample]]) -> None:
    """Write samples in this layout."""
    listed: dict[str, list[list[str]]] = {"train": [], "test": []}
    number = 0
    for split, samples in splits.items():
        for sample in samples:
            targets = {task: target.numpy() for task, target in sample.targets.items()}
            normals = encode_normals(targets["normals"], sample.masks["normals"].numpy())
            paths = [
                f"{FOLDERS[column]}/{number:04d}.{'npy' if column == 'depth' else 'png'}" for column in COLUMNS
            ]
            write_png(root / paths[0], sample.image.numpy())
            write_png(root / paths[1], targets["segmentation"].astype(np.uint8))
            write_png(root / paths[2], normals)
            write_npy(root / paths[3], targets["depth"][0])
            listed[split].append(paths)
            number += 1
    write_text(root / INDEX, json.dumps(listed, indent=1) + "\n")


ADASHARE = Layout(
    name="adashare",
    description="as AdaShare and DiSparse ship it: PNG and NumPy files listed in nyu_v2_3task.json",
    source="https://drive.google.com/file/d/11pWuQXMFBNMIIB4VYMzi9RPE-nMOBU8g (github.com/sunxm2357/AdaShare)",
    signs=(INDEX,),
    hints=tuple(FOLDERS.values()),
    index=index,
    image=read_image,
    columns={
        "segmentation": Column(read=read_classes, decode=decode_forty, classes=(40, 13)),
        "normals": Column(read=read_normals, decode=decode_normals),
        "depth": Column(read=read_depth, decode=decode_depth, units=("m",)),
    },
    size=(480, 640),
    write=write,
    writes=(Labels("segmentation", classes=CLASSES), Labels("normals"), Labels("depth", unit="m")),
)
