"""Cityscapes as cityscapes-dataset.com ships it: PNG files of 1024 x 2048 pixels, by split and city.

leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png   RGB uint8
gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png    uint8, label 0 to 33
disparity/train/aachen/aachen_000000_000019_disparity.png       uint16, see `disparity`
camera/train/aachen/aachen_000000_000019_camera.json            extrinsic.baseline (metres), intrinsic.fx (pixels)

Files of 1024 x 2048 pixels are brought to 256 x 512: images by the mean of 4 x 4 pixels, labels and disparity by
the pixel below the centre of these. Others, such as copies that are smaller, are taken as they are; their
disparity is still counted in pixels of the full size. "val" is the test set: the labels of the official one are
secret. The cameras are needed for depth in metres only: their folder may be left out as a whole.
"""

from __future__ import annotations

import json
import math
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
    naming,
    read_png,
    write_png,
    write_text,
)

from .arrays import classes_of
from .classes import LABELS, decode_labels, encode_labels
from .disparity import TOP, UNIT, decode_fractions, decode_metres, encode_fractions

Array = NDArray[Any]
Pair = tuple[Array, Array]

FOLDERS = {"train": "train", "test": "val"}
"""By split, the folder that holds its files."""
SUFFIXES = {
    "leftImg8bit": "leftImg8bit.png",
    "gtFine": "gtFine_labelIds.png",
    "disparity": "disparity.png",
    "camera": "camera.json",
}
"""By kind of file, its folder, how its name ends."""
FULL = (1024, 2048)
SHRINK = 4
CAMERA = {"extrinsic": {"baseline": 0.209313}, "intrinsic": {"fx": 2262.52}}
"""Of generated samples: what most of the official files hold."""


def index(root: Path, tasks: tuple[str, ...]) -> Index:
    """Return the images of both folders, by name."""
    depth = ("disparity", "camera") if (root / "camera").is_dir() else ("disparity",)
    kinds = {"image": ("leftImg8bit",), "segmentation": ("gtFine",), "depth": depth}
    wanted = {column: kinds[column] for column in ("image", *tasks)}
    train, test = (_entries(root, FOLDERS[split], wanted) for split in ("train", "test"))
    return Index(train=train, test=test)


def _entries(root: Path, folder: str, kinds: Mapping[str, tuple[str, ...]]) -> tuple[Entry, ...]:
    suffix = SUFFIXES["leftImg8bit"]
    images = sorted((root / "leftImg8bit" / folder).glob(f"*/*_{suffix}"))
    stems = [f"{folder}/{path.parent.name}/{path.name.removesuffix(suffix)}" for path in images]
    return tuple(
        {
            column: tuple(Place(root / kind / (stem + SUFFIXES[kind])) for kind in names)
            for column, names in kinds.items()
        }
        for stem in stems
    )


def read_image(place: Place) -> Array:
    """Return an image, RGB uint8 [3, H, W]. Raises DataError."""
    pixels = read_png(place.path, "RGB")
    if pixels.shape[-2:] != FULL:
        return pixels
    steps = range(SHRINK)
    parts = (pixels[:, row::SHRINK, column::SHRINK].astype(np.uint16) for row in steps for column in steps)
    total: Array = sum(parts, start=np.full(1, SHRINK**2 // 2, dtype=np.uint16))
    return (total // SHRINK**2).astype(np.uint8)


def shrunk(labels: Array) -> Array:
    """Return `labels` [H, W] at 256 x 512 pixels if they are of the full size, else as they are."""
    return labels[SHRINK // 2 :: SHRINK, SHRINK // 2 :: SHRINK] if labels.shape == FULL else labels


def read_labels(place: Place) -> tuple[Array]:
    """Return the label of each pixel, uint8 [H, W]. Raises DataError."""
    labels = read_png(place.path, "L")
    if (wrong := labels[labels >= LABELS]).size:
        raise DataError(f"{place} holds label {wrong[0]}; labels are 0 to {LABELS - 1}. Replace the file.")
    return (shrunk(labels),)


def read_disparity(place: Place, camera: Place | None = None) -> tuple[Array, ...]:
    """Return stored disparity, uint16 [1, H, W], and with a camera its factor, float32 [1, H, W]: see `disparity`.

    Raises DataError.
    """
    disparity = shrunk(read_png(place.path, "I;16"))[None]
    if camera is None:
        return (disparity,)
    return disparity, np.broadcast_to(np.float32(read_camera(camera.path)), disparity.shape)


def read_camera(path: Path) -> float:
    """Return the baseline in metres times the focal length in pixels of a camera file. Raises DataError."""
    with naming(path, "a camera's JSON, with extrinsic.baseline and intrinsic.fx"):
        content = json.loads(path.read_bytes())
        baseline, focal = float(content["extrinsic"]["baseline"]), float(content["intrinsic"]["fx"])
    for name, value in (("extrinsic.baseline", baseline), ("intrinsic.fx", focal)):
        if not 0 < value < math.inf:
            raise DataError(f"{path} holds {name} = {value}; it must be above 0. Replace the file.")
    return baseline * focal


def decode_depth(stored: tuple[Array, ...], labels: Labels, protocol: Protocol) -> Pair:
    """Return disparity over 65535 or depth in metres, float32 [1, H, W], and where there is one; 0 elsewhere.

    Raises DataError for metres where there are no cameras.
    """
    if labels.unit == UNIT:
        return decode_fractions(stored[0].astype(np.float32) / np.float32(TOP))
    if len(stored) == 1:
        raise DataError(
            "Depth in metres needs the cameras of Cityscapes, but there is no folder 'camera' beside 'disparity'. "
            "Unpack camera_trainvaltest.zip there, or take dataset 'cityscapes', which has disparity."
        )
    return decode_metres(*stored)


def write(root: Path, splits: Mapping[str, Sequence[Sample]]) -> None:
    """Write samples in this layout, as images of the city "generated"."""
    for split, samples in splits.items():
        for number, sample in enumerate(samples):
            stem = f"{FOLDERS[split]}/generated/generated_000000_{number:06d}_"
            paths = {kind: root / kind / (stem + suffix) for kind, suffix in SUFFIXES.items()}
            disparity = encode_fractions(sample.targets["depth"].numpy(), sample.masks["depth"].numpy())
            write_png(paths["leftImg8bit"], enlarged(sample.image.numpy()))
            write_png(paths["gtFine"], enlarged(encode_labels(classes_of(sample))))
            write_png(paths["disparity"], enlarged(disparity[0]))
            write_text(paths["camera"], json.dumps(CAMERA, indent=1) + "\n")


def enlarged(array: Array) -> Array:
    """Return `array` [..., H, W] at the full size if that is read at the size it has, else as it is."""
    if array.shape[-2:] != OFFICIAL.size:
        return array
    return array.repeat(SHRINK, axis=-2).repeat(SHRINK, axis=-1)


OFFICIAL = Layout(
    name="official",
    description="as cityscapes-dataset.com ships it: PNG files in leftImg8bit, gtFine and disparity",
    source=(
        "https://www.cityscapes-dataset.com: leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip, "
        "disparity_trainvaltest.zip and, for depth in metres, camera_trainvaltest.zip."
    ),
    signs=("leftImg8bit/train", "leftImg8bit/val", "gtFine", "disparity"),
    hints=("leftImg8bit", "camera"),
    index=index,
    image=read_image,
    columns={
        "segmentation": Column(read=read_labels, decode=decode_labels, classes=(19, 7)),
        "depth": Column(read=read_disparity, decode=decode_depth, units=(UNIT, "m")),
    },
    size=(FULL[0] // SHRINK, FULL[1] // SHRINK),
    write=write,
    writes=(Labels("segmentation", classes=19), Labels("depth", unit=UNIT)),
)
