"""File formats of images and labels: read into arrays, written from them. A bad file is named, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mtlprune_bench.errors import DataError

Array = NDArray[Any]


def as_tensor(array: Array) -> Tensor:
    """Return `array` as a tensor: in its own memory, or copied where that is read-only or out of order."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


GREY16 = ("I;16", "I;16B", "I")
"""What Pillow calls 16-bit grey; the last is that of older versions, with 32 bits a pixel."""
MODES = {"RGB": "8-bit RGB", "L": "8-bit grey", "I;16": "16-bit grey"}


@contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into a DataError that names `path` and `what` it should be."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # Neither Pillow nor NumPy has a common base for what damaged files raise.
        raise DataError(f"{path} cannot be read as {what}: {error}. Replace the file.") from error


def read_png(path: Path, mode: str) -> Array:
    """Return the pixels of a PNG: uint8 [3, H, W] for `mode` "RGB", uint8 [H, W] for "L", uint16 for "I;16".

    Raises DataError where the file is damaged or has other pixels: 16 bits are never read as 8.
    """
    with naming(path, "a PNG image"):
        with Image.open(path, formats=["PNG"]) as picture:
            picture.verify()  # checksums, which loading leaves out
        with Image.open(path, formats=["PNG"]) as picture:
            found = "I;16" if picture.mode in GREY16 else picture.mode
            pixels: Array = np.array(picture)
    if found != mode:
        name = MODES.get(found, f"'{found}'")
        raise DataError(f"{path} holds {name} pixels; this layout has {MODES[mode]}. Replace the file.")
    if mode == "I;16":
        return pixels.astype(np.uint16)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if mode == "RGB" else pixels


def write_png(path: Path, pixels: Array) -> None:
    """Write uint8 [3, H, W], uint8 [H, W] or uint16 [H, W] `pixels` as a PNG, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels))
    picture.save(path, format="PNG")


def read_npy(path: Path, dimensions: int, kinds: str = "f") -> Array:
    """Return the array in a NumPy file. Raises DataError where it is damaged or has another form.

    `kinds` are the codes of `numpy.dtype.kind` that it may have. Nothing in the file is executed.
    """
    with naming(path, "a NumPy array"), path.open("rb") as file:
        array: Array = np.load(file, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
    if array.ndim != dimensions or array.dtype.kind not in kinds:
        raise DataError(
            f"{path} holds {array.dtype} in {array.ndim} dimensions; this layout has {dimensions} dimensions of "
            f"{' or '.join(KINDS[kind] for kind in kinds)}. Replace the file."
        )
    return array


KINDS = {"f": "floating-point numbers", "i": "integers", "u": "unsigned integers"}


def write_npy(path: Path, array: Array) -> None:
    """Write `array` as a NumPy file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
