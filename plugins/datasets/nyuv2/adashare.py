"""NYU-v2 as AdaShare and DiSparse ship it: an index in JSON beside folders of PNG and NumPy files.

nyu_v2_3task.json       {"train": [[image, classes, normals, depth], ...], "test": [...]}, paths relative to it
img/0061.png            RGB uint8
seg/0061.png            uint8, class 0 to 39, 255 where a pixel has none
normal_mask/0061.png    RGB uint8, floor((n + 1) * 127.5): x right, z forward, y up; white where there is none
depth/0061.npy          float32, metres
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mtlprune_bench import DataError, Labels, Protocol, Sample

INDEX = "nyu_v2_3task.json"
COLUMNS = ("image", "segmentation", "normals", "depth")
FOLDERS = {"nyuv2", "nyudepthv2"}
"""Names of a folder that may hold the index, in small letters and without - and _."""

VOID = 255
ZERO = 127
"""The code of 0 in a normal's component."""
NEAREST = 3e-5
"""Depth in metres above which a pixel counts as measured, as in the released code."""

Entry = dict[str, Path]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Photos:
    """Photographs by their entries in the index, with the labels that were asked for."""

    entries: tuple[Entry, ...]
    labels: tuple[Labels, ...]
    protocol: Protocol

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        """Return photograph `index`. Raises DataError where one of its files is bad."""
        if not 0 <= index < len(self.entries):
            raise IndexError(f"There is no photograph {index} among {len(self.entries)}.")
        entry = self.entries[index]
        image = read_picture(entry["image"], "RGB")
        size = image.shape[-2:]
        pairs = {}
        for labels in self.labels:
            path = entry[labels.task]
            target, mask = READERS[labels.task](path, labels, self.protocol)
            if mask.shape != size:
                raise DataError(
                    f"{path} has {_size(mask.shape)} pixels, but its image {entry['image']} has {_size(size)}."
                )
            pairs[labels.task] = target, mask
        return Sample(
            image=image,
            targets={task: target for task, (target, _) in pairs.items()},
            masks={task: mask for task, (_, mask) in pairs.items()},
        )


def _size(shape: torch.Size) -> str:
    return " x ".join(map(str, shape))


def read_picture(path: Path, mode: str) -> Tensor:
    """Return the pixels of a PNG as uint8, [3, H, W] for `mode` "RGB", [H, W] for "L". Raises DataError."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            found = picture.mode
            picture.load()
            pixels: NDArray[Any] = np.array(picture)
    except Exception as error:  # Pillow has no common base for what a damaged file can raise.
        raise DataError(f"{path} cannot be read as a PNG image: {error}. Replace the file.") from error
    if found != mode:
        raise DataError(f"{path} holds {found} pixels; this layout has {mode}. Replace the file.")
    values = torch.from_numpy(pixels)
    return values.permute(2, 0, 1).contiguous() if mode == "RGB" else values


def read_classes(path: Path, labels: Labels, protocol: Protocol) -> Pair:
    """Return the class of each pixel, int64 [H, W], 255 where it has none, and where it has one."""
    classes = read_picture(path, "L").long()
    mask = classes != VOID
    if (wrong := classes[mask & (classes >= labels.classes)]).numel():
        raise DataError(
            f"{path} holds class {int(wrong[0])}; classes are 0 to {labels.classes - 1}, and {VOID} for none."
        )
    return classes, mask


def read_normals(path: Path, labels: Labels, protocol: Protocol) -> Pair:
    """Return unit normals, float32 [3, H, W], 0 where there are none, and where there are.

    Decoded by n = (code + 0.5) / 127.5 - 1 they are in the camera frame x right, y down, z forward. A
    protocol that does not decode takes the codes for vectors, as the released code does by normalising what
    OpenCV reads: blue first. The order changes no angle, as predictions learn the same one, but it names the
    axes: (up, forward, right). Codes of the zero vector then count as valid.
    """
    codes = read_picture(path, "RGB")
    mask = (codes != VOID).all(0)
    if protocol.decode_normals:
        mask &= (codes != ZERO).any(0)
        right, forward, up = (codes.float() + 0.5) / 127.5 - 1
        vectors = torch.stack([right, -up, forward])
    else:
        vectors = codes.flip(0).float()
    # Not by torch's norm, which takes forty times as long over the first of three dimensions.
    lengths = vectors.square().sum(0).sqrt().clamp(min=1e-6)
    return (vectors / lengths).masked_fill(~mask, 0.0), mask


def read_depth(path: Path, labels: Labels, protocol: Protocol) -> Pair:
    """Return depth in metres, float32 [1, H, W], 0 where there is none, and where there is."""
    try:
        with path.open("rb") as file:
            depth: NDArray[Any] = np.load(file, allow_pickle=False)
        if not (isinstance(depth, np.ndarray) and depth.ndim == 2 and depth.dtype.kind == "f"):
            raise ValueError("it holds no floating-point array [H, W]")
        values = torch.from_numpy(depth.astype(np.float32))[None]
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise DataError(f"{path} cannot be read as depth: {error}. Replace the file.") from error
    mask = torch.isfinite(values) & (values > NEAREST)
    return values.masked_fill(~mask, 0.0), mask[0]


READERS: dict[str, Callable[[Path, Labels, Protocol], Pair]] = {
    "segmentation": read_classes,
    "normals": read_normals,
    "depth": read_depth,
}
"""By task: how a file becomes a target and its mask. Each raises DataError naming the file."""


def find_index(root: Path) -> Path | None:
    """Return the index in `root` or in a folder of it named after the data set, None where there is none."""
    try:
        inner = sorted(root.iterdir()) if root.is_dir() else []
        named = [path for path in inner if path.name.lower().replace("_", "").replace("-", "") in FOLDERS]
        return next((folder / INDEX for folder in (root, *named) if (folder / INDEX).is_file()), None)
    except OSError as error:
        raise DataError(f"Cannot look into {root}: {error.strerror}. Make it readable.") from error


def read_index(index: Path, tasks: tuple[str, ...]) -> dict[str, tuple[Entry, ...]]:
    """Return the entries of "train" and "test": the path of the image and of each task's labels.

    Raises DataError where the index is damaged, names a file outside its folder, or one that is missing.
    """
    try:
        content = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{index} cannot be read as JSON: {error}. Replace the file.") from error
    splits = {split: tuple(_entries(index, content, split)) for split in ("train", "test")}
    kept = ("image", *tasks)
    paths = [entry[column] for entries in splits.values() for entry in entries for column in kept]
    if missing := [path for path in dict.fromkeys(paths) if not path.is_file()]:
        raise DataError(
            f"{len(missing)} of the files that {index} lists are missing; the first is {missing[0]}. "
            "Unpack the archive again."
        )
    return splits


def _entries(index: Path, content: Any, split: str) -> Iterator[Entry]:
    """Yield the entries of one split, checked, with resolved paths."""
    listed = content.get(split) if isinstance(content, dict) else None
    if not (isinstance(listed, list) and listed):
        raise DataError(f"{index} lists no '{split}' images; it must be an object with 'train' and 'test'.")
    folder = index.parent.resolve()
    for number, names in enumerate(listed):
        where = f"{index}: entry {number} of '{split}'"
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise DataError(f"{where} is {names!r}; it must be a list of paths.")
        if len(names) != len(COLUMNS):
            raise DataError(f"{where} has {len(names)} paths; it must have {len(COLUMNS)}: {', '.join(COLUMNS)}.")
        yield {column: _path(folder, name, where) for column, name in zip(COLUMNS, names, strict=True)}


def _path(folder: Path, name: str, where: str) -> Path:
    """Return the file called `name`, links followed. Raises DataError where it lies outside `folder`."""
    try:
        path = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} names {name!r}, which is no path: {error}.") from error
    if Path(name).is_absolute() or not path.is_relative_to(folder):
        raise DataError(f"{where} names {name}, which leads out of {folder}. Such files are never read.")
    return path
