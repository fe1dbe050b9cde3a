"""Labels in the units that are asked for: classes, depth, and two maps that are functions of the image."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import feature, filters

from .kinds import CLASSES, OBJECTS, STRUCTURE, VOID

Float32 = NDArray[np.float32]
FEWEST_CLASSES = STRUCTURE + 1

BASELINE = 60.0
"""Baseline times focal length of the imagined stereo camera, in pixel metres."""
# scikit-image is not annotated.
Filter = Callable[..., NDArray[np.float64]]
hessian_determinant: Filter = feature.hessian_matrix_det
gaussian: Filter = filters.gaussian
sobel: Filter = filters.sobel

KEYPOINT_CEILING = 0.005
EDGE_CEILING = 0.08
KEYPOINT_SCALES = tuple(np.linspace(1, 30, 10).tolist())
EDGE_BLUR = 3.0


def as_metres(depth: Float32) -> Float32:
    """Return `depth`, metres."""
    return depth


def as_disparity(depth: Float32) -> Float32:
    """Return depth in metres as 16-bit disparity over 65535: (256 d + 1) / 65535, d = `BASELINE` / z pixels.

    At 0.8 m it is 0.29, at 8 m 0.03.
    """
    return (256 * np.float32(BASELINE) / depth + 1) / np.float32(65535)


def as_log_code(depth: Float32) -> Float32:
    """Return depth in metres as Taskonomy's code ln(1 + 512 z) / ln 65536, in [0, 1] up to 128 m."""
    code: Float32 = (np.log1p(512 * depth) / np.log(65536)).astype(np.float32)
    return code


DEPTH_UNITS: dict[str, Callable[[Float32], Float32]] = {
    "m": as_metres,
    "disparity/65535": as_disparity,
    "log code": as_log_code,
}


@functools.cache
def class_table(classes: int) -> NDArray[np.int64]:
    """Return which of `classes` (4 to 40) each stored label becomes, [256]; 255 stays what it is.

    Walls, floor and ceiling keep their classes; kinds of objects that are neighbours, and so alike in shape,
    fall together.
    """
    table = np.full(256, VOID, dtype=np.int64)
    table[:STRUCTURE] = np.arange(STRUCTURE)
    table[STRUCTURE:CLASSES] = STRUCTURE + np.arange(OBJECTS) * (classes - STRUCTURE) // OBJECTS
    return table


def grey(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the luminance [H, W], in [0, 1], of an RGB image [H, W, 3], rounded to 8 bits."""
    return np.asarray(Image.fromarray(image).convert("L")) / 255


def keypoints(image: NDArray[np.uint8]) -> Float32:
    """Return the keypoint map [H, W], in [-1, 1]: the largest determinant of the Hessian over ten scales."""
    luminance = grey(image)
    strongest = np.max([hessian_determinant(luminance, scale) for scale in KEYPOINT_SCALES], axis=0)
    return squash(strongest, KEYPOINT_CEILING)


def edges(image: NDArray[np.uint8]) -> Float32:
    """Return the edge map [H, W], in [-1, 1]: the Sobel magnitude of the blurred image."""
    luminance = grey(image)
    blurred = gaussian(luminance, EDGE_BLUR, mode="constant") / _coverage(*luminance.shape)
    return squash(sobel(blurred), EDGE_CEILING)


@functools.cache
def _coverage(height: int, width: int) -> NDArray[np.float64]:
    """Return the share of the blur that lies inside the image, [H, W]."""
    return gaussian(np.ones((height, width)), EDGE_BLUR, mode="constant")


def squash(strength: NDArray[np.float64], ceiling: float) -> Float32:
    """Return `strength` as in Taskonomy: stored times 65535, read over 65536, 0..ceiling mapped to -1..1."""
    read = np.clip(strength, 0, None) * 65535 / 65536
    squashed: Float32 = (2 * np.clip(read, 0, ceiling) / ceiling - 1).astype(np.float32)
    return squashed
