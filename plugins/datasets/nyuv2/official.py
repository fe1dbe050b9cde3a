"""NYU-v2 as its authors ship it: one large MATLAB file for all images, beside files for splits and classes.

nyu_depth_v2_labeled.mat      MATLAB 7.3, that is HDF5, with axes in reverse order:
    images [N, 3, W, H] uint8, RGB; labels [N, W, H] uint16, 0 where a pixel has none;
    depths and rawDepths [N, W, H] float32, metres, with and without holes filled in (0)
splits.mat                    trainNdxs and testNdxs, the numbers of the images, counted from 1
classMapping40.mat            mapClass, the class 1 to 40 of each label from 1 on
normals_gt/normals/0000.png   the normals of Ladicky et al., counted from 0; or without the folder normals_gt
normals_gt/masks/0000.png     0 where there are none

The encoding of these normals is documented nowhere. It is taken to be that of AdaShare's files, which were made
from them: fitted to depth, those are floor((n + 1) * 127.5), x right, z forward, y up. Where the normals are not
there, they are computed from depth, and kept in the same codes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
    checksum,
    inside,
    naming,
    read_png,
    write_png,
)

from . import adashare
from .classes import VOID, decode_forty
from .geometry import normals_of
from .matlab import read_numbers

Array = NDArray[Any]
Pair = tuple[Array, Array]

IMAGES = "nyu_depth_v2_labeled.mat"
SPLITS = "splits.mat"
CLASSES = "classMapping40.mat"
KEYS = {"train": "trainNdxs", "test": "testNdxs"}
NORMALS = ("normals_gt/", "")
"""Where the folders normals and masks may be: in the folder of their archive, or in the root."""
TYPES = {"images": "uint8", "labels": "uint16", "depths": "float32", "rawDepths": "float32"}
NEEDS = {
    "image": ("images",),
    "segmentation": ("labels",),
    "normals": ("depths", "rawDepths"),
    "depth": ("depths", "rawDepths"),
}
"""What the columns need of the large file."""


def index(root: Path, tasks: tuple[str, ...]) -> Index:
    """Return the images of both splits. Raises DataError where the large file or the splits are bad.

    Whether normals are computed is part of the fingerprint, as two runs on either would differ.
    """
    images, splits = _inside(root, IMAGES), _inside(root, SPLITS)
    count = count_images(images, tuple(dict.fromkeys(key for task in ("image", *tasks) for key in NEEDS[task])))
    folder = next((name for name in NORMALS if (root / f"{name}normals").is_dir()), None)
    computed = "normals" in tasks and folder is None
    listed = {
        split: tuple(
            _entry(root, Place(images, int(number) - 1), tasks, folder)
            for number in whole_numbers(splits, key, count)
        )
        for split, key in KEYS.items()
    }
    return Index(
        train=listed["train"],
        test=listed["test"],
        note="normals computed from depth" if computed else "",
        fingerprint=checksum(splits)[:16] + ("-computed-normals" if computed else ""),
    )


def _entry(root: Path, place: Place, tasks: tuple[str, ...], folder: str | None) -> Entry:
    """Return the entry of one image; without a `folder` of normals they are where depth is."""
    entry: dict[str, tuple[Place, ...]] = dict.fromkeys(("image", *tasks), (place,))
    if "segmentation" in tasks:
        entry["segmentation"] = (place, Place(_inside(root, CLASSES)))
    if "normals" in tasks and folder is not None:
        kinds = ("normals", "masks")
        entry["normals"] = tuple(Place(_inside(root, f"{folder}{kind}/{place.row:04d}.png")) for kind in kinds)
    return entry


def _inside(root: Path, name: str) -> Path:
    return inside(root, name, f"The folder {root}")


def whole_numbers(path: Path, key: str, most: int) -> NDArray[np.int64]:
    """Return the numbers under `key` of a MATLAB file, [N]. Raises DataError unless whole, from 1 to `most`."""
    with naming(path, "a MATLAB file"):
        numbers = read_numbers(path.read_bytes(), key)
    if numbers is None:
        raise DataError(f"{path} has no numbers called '{key}'. Replace the file.")
    if (wrong := numbers[(numbers != np.floor(numbers)) | (numbers < 1) | (numbers > most)]).size:
        raise DataError(f"{path}: '{key}' holds {wrong[0]:g}; it must hold whole numbers from 1 to {most}.")
    return numbers.astype(np.int64)


def open_hdf5(path: Path) -> Any:
    """Return an HDF5 file, opened for reading; without a lock, which some file systems refuse."""
    import h5py

    return h5py.File(path, "r", locking=False)


def count_images(path: Path, keys: tuple[str, ...]) -> int:
    """Return how many images the large file has. Raises DataError unless `keys` are there, in their form."""
    with naming(path, "an HDF5 file"), open_hdf5(path) as file:
        shapes = [_shape(path, file, key) for key in keys]
    if len({(shape[0], *shape[-2:]) for shape in shapes}) > 1:
        found = ", ".join(f"'{key}' is {list(shape)}" for key, shape in zip(keys, shapes, strict=True))
        raise DataError(f"{path}: {found}; numbers and sizes of images differ. Replace the file.")
    return shapes[0][0]


def _shape(path: Path, file: Any, key: str) -> tuple[int, ...]:
    """Return the shape of an array of the large file. Raises DataError unless it has the form it must have."""
    if not hasattr(file.get(key), "dtype"):
        raise DataError(f"{path} has no '{key}'. Replace the file.")
    shape: tuple[int, ...] = file[key].shape
    form = ("images", "3", "width", "height") if key == "images" else ("images", "width", "height")
    if len(shape) != len(form) or file[key].dtype != TYPES[key] or (key == "images" and shape[1] != 3):
        raise DataError(
            f"{path}: '{key}' is {file[key].dtype} {list(shape)}; it must be {TYPES[key]} [{', '.join(form)}]. "
            "Replace the file."
        )
    return shape


@functools.cache
def _opened(path: Path, process: int) -> Any:
    """Return the file, kept open; one for each `process`, as readers are forked."""
    return open_hdf5(path)


def _row(place: Place, key: str) -> Array:
    """Return an array of one image, [..., H, W], and read no other. Raises DataError."""
    with naming(place.path, "an HDF5 file"):
        row: Array = _opened(place.path, os.getpid())[key][place.row]
    return np.ascontiguousarray(row.swapaxes(-1, -2))


def read_image(place: Place) -> Array:
    """Return an image, RGB uint8 [3, H, W]. Raises DataError."""
    return _row(place, "images")


@functools.cache
def _class_table(path: Path) -> NDArray[np.uint8]:
    """Return the class, 0 to 39, of each label from 0 on. Raises DataError."""
    return np.append(VOID, whole_numbers(path, "mapClass", adashare.CLASSES) - 1).astype(np.uint8)


def read_classes(place: Place, classes: Place) -> tuple[Array]:
    """Return the class of each pixel, uint8 [H, W], 255 where it has none. Raises DataError."""
    labels, table = _row(place, "labels"), _class_table(classes.path)
    if (largest := int(labels.max(initial=0))) >= len(table):
        raise DataError(f"{place} holds label {largest}; {classes} has the classes of 1 to {len(table) - 1}.")
    return (table[labels],)


def read_normals(*places: Place) -> tuple[Array, Array]:
    """Return the codes of normals, uint8 [3, H, W], and a mask, uint8 [H, W]. Raises DataError."""
    if len(places) == 2:
        return read_png(places[0].path, "RGB"), read_mask(places[1].path)
    depth, measured = read_depth(*places)
    normals, mask = normals_of(depth[0], measured > 0)
    return adashare.encode_normals(normals, mask), mask.astype(np.uint8)


def read_mask(path: Path) -> Array:
    """Return a mask, uint8 [H, W] of 0 and 1, from a grey PNG of 8 bits or 1 bit. Raises DataError."""
    with naming(path, "a PNG image"), Image.open(path, formats=["PNG"]) as picture:
        mask: Array = np.array(picture)
    if picture.mode not in ("1", "L"):
        raise DataError(f"{path} holds '{picture.mode}' pixels; a mask has one channel. Replace the file.")
    return (mask > 0).astype(np.uint8)


def decode_normals(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return unit normals, float32 [3, H, W], and where there are any, as of AdaShare's files.

    There white marks pixels without a normal; the brightest code of others is 254.
    """
    codes, mask = stored
    return adashare.decode_normals((np.where(mask > 0, codes.clip(max=VOID - 1), VOID),), labels, protocol)


def read_depth(place: Place) -> tuple[Array, Array]:
    """Return depth in metres, float32 [1, H, W], and where it was measured, uint8 [H, W]. Raises DataError."""
    return _row(place, "depths")[None], (_row(place, "rawDepths") > 0).astype(np.uint8)


def decode_depth(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return depth in metres, float32 [1, H, W], and where it is valid: measured, or painted in if that counts."""
    depth, measured = stored
    kept = depth if protocol.inpainted_depth else np.where(measured > 0, depth, 0)
    return adashare.decode_depth((kept,), labels, protocol)


def write(root: Path, splits: Mapping[str, Sequence[Sample]]) -> None:
    """Write samples, all of one size, in this layout."""
    import h5py
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    samples: list[Sample] = []
    listed: dict[str, Array] = {}
    for split, made in splits.items():
        first = len(samples) + 1
        listed[KEYS[split]] = np.arange(first, first + len(made), dtype=np.uint16)[:, None]
        samples += made
    arrays = [_arrays(sample) for sample in samples]
    with h5py.File(root / IMAGES, "w") as file:
        for key, dtype in TYPES.items():
            file[key] = np.stack([array[key].swapaxes(-1, -2) for array in arrays]).astype(dtype)
    savemat(root / SPLITS, listed)
    savemat(root / CLASSES, {"mapClass": np.arange(1, adashare.CLASSES + 1, dtype=np.uint8)[None]})
    for number, sample in enumerate(samples):
        mask = sample.masks["normals"].numpy()
        codes = adashare.encode_normals(sample.targets["normals"].numpy(), mask)
        codes = np.where(mask, codes, adashare.ZERO).astype(np.uint8)
        write_png(root / f"{NORMALS[0]}normals/{number:04d}.png", codes)
        write_png(root / f"{NORMALS[0]}masks/{number:04d}.png", mask.astype(np.uint8) * 255)


def _arrays(sample: Sample) -> dict[str, Array]:
    """Return the arrays of one sample in the large file, [..., H, W]."""
    targets, masks = sample.targets, sample.masks
    classes = np.where(masks["segmentation"], targets["segmentation"] + 1, 0)
    depth = targets["depth"][0].numpy()
    return {
        "images": sample.image.numpy(),
        "labels": classes,
        "depths": depth,
        "rawDepths": np.where(masks["depth"], depth, 0),
    }


OFFICIAL = Layout(
    name="official",
    description=f"as its authors ship it: {IMAGES}, {SPLITS} and {CLASSES}",
    source=(
        f"{IMAGES} and {SPLITS}: https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html; {CLASSES}: "
        "https://github.com/ankurhanda/nyuv2-meta-data. normals_gt.tgz of cs.nyu.edu/~deigen/dnl is offered no "
        "longer: without it, normals are computed from depth."
    ),
    signs=(IMAGES, SPLITS, CLASSES),
    hints=("normals_gt", "normals", "masks"),
    index=index,
    image=read_image,
    columns={
        "segmentation": Column(read=read_classes, decode=decode_forty, classes=(40, 13)),
        "normals": Column(read=read_normals, decode=decode_normals),
        "depth": Column(read=read_depth, decode=decode_depth, units=("m",)),
    },
    size=(480, 640),
    write=write,
    writes=adashare.ADASHARE.writes,
)
