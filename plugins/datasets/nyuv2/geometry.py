"""Surface normals from a depth map, for files that have depth but no normals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FOCAL = (518.857901, 519.469611)
"""Focal lengths of the colour camera along columns and rows, in pixels."""
CENTRE = (325.582245, 253.736166)
"""Column and row of its principal point, counted from 1, as the data set's toolbox counts them."""
REACH = 7
"""Pixels between a point and those it is compared with. Against the normals that AdaShare ships for photographs
0061 and 0774 the median error is 24 degrees at 1 pixel, where the sensor's depth steps dominate, and 6 at 7."""
JUMP = 0.1
"""Change of depth over that distance, as a fraction of it, above which it counts as an edge."""


def points(depth: Array) -> Array:
    """Return the points, float64 [3, H, W] in metres, that a camera sees at `depth` [H, W] in metres.

    They are in the camera frame x right, y down, z forward; camera_params.m and rgb_plane2rgb_world.m of the
    NYU-v2 toolbox, which lets y point up.
    """
    rows, columns = np.indices(depth.shape)
    across, down = ((columns + 1 - CENTRE[0]) / FOCAL[0], (rows + 1 - CENTRE[1]) / FOCAL[1])
    return np.stack([across, down, np.ones(depth.shape)]) * depth


def normals_of(depth: Array, measured: Array) -> tuple[Array, Array]:
    """Return unit normals that face the camera, float64 [3, H, W], and where there are any, bool [H, W].

    A normal is the cross product of the differences between the points `REACH` pixels below and above, and
    right and left; from points in front of a camera it always faces it. There is none within `REACH` pixels of
    the border, nor where one of the five depths is not `measured` (bool [H, W]) or an edge lies between them.
    """
    normals, mask = np.zeros((3, *depth.shape)), np.zeros(depth.shape, dtype=bool)
    known = measured & np.isfinite(depth) & (depth > 0)
    depth = np.where(known, depth, 1).astype(np.float64)
    near, far, middle = slice(None, -2 * REACH), slice(2 * REACH, None), slice(REACH, -REACH)
    around = ((near, middle), (far, middle), (middle, near), (middle, far))
    valid, here = known[middle, middle], depth[middle, middle]
    for part in around:
        valid = valid & known[part] & (abs(depth[part] - here) <= JUMP * here)
    seen = points(depth)
    above, below, left, right = (seen[:, *part] for part in around)
    vectors = np.cross(below - above, right - left, axis=0)
    normals[:, middle, middle] = vectors / np.linalg.norm(vectors, axis=0) * valid
    mask[middle, middle] = valid
    return normals, mask
