"""Normals computed from depth: planes and a sphere whose normals are known, edges, holes, and real photographs."""

from __future__ import annotations

import numpy as np
import pytest

from mtlprune_bench import STANDARD, Labels, Place
from mtlprune_bench.plugins.datasets.nyuv2 import adashare
from mtlprune_bench.plugins.datasets.nyuv2.geometry import CENTRE, FOCAL, JUMP, REACH, normals_of, points

SIZE = (480, 640)
EVERYWHERE = np.ones(SIZE, dtype=bool)


def rays():
    """Return the direction of view of every pixel, [3, H, W], its z being 1."""
    rays = np.empty((3, *SIZE))
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            rays[:, row, column] = (column + 1 - CENTRE[0]) / FOCAL[0], (row + 1 - CENTRE[1]) / FOCAL[1], 1
    return rays


@pytest.fixture(scope="module")
def views():
    return rays()


def degrees(normals, truth):
    return np.degrees(np.arccos((normals * truth).sum(0).clip(-1, 1)))


def test_points_are_where_they_are_seen(views):
    depth = np.random.default_rng(0).uniform(1, 5, SIZE)
    assert np.allclose(points(depth), views * depth)
    # The principal point lies between pixels: right of and below the middle.
    assert points(depth)[0, 0, 324] < 0 < points(depth)[0, 0, 325]
    assert points(depth)[1, 252, 0] < 0 < points(depth)[1, 253, 0]


@pytest.mark.parametrize(
    "normal",
    [(0, 0, -1), (0, -1, -0.3), (0.5, 0.1, -1), (-0.7, 0.2, -0.8)],
    ids=["wall", "floor", "right", "left"],
)
def test_a_plane_has_its_normal_everywhere(views, normal):
    normal = np.array(normal) / np.linalg.norm(normal)
    along = -(normal[:, None, None] * views).sum(0)
    seen = along > 0.05
    depth = np.where(seen, 2 / along.clip(min=0.05), 1)  # where normal . point = -2
    normals, mask = normals_of(depth, seen)
    assert mask.sum() > 0.2 * mask.size
    assert degrees(normals[:, mask], normal[:, None]).max() < 1e-4
    assert not normals[:, ~mask].any()


def test_a_sphere_has_the_normals_of_a_sphere(views):
    centre, radius = np.array([0.2, -0.3, 4.0]), 1.0
    squared, half = (views**2).sum(0), (views * centre[:, None, None]).sum(0)
    root = half**2 - squared * (centre @ centre - radius**2)
    hit = root > 0
    depth = np.where(hit, (half - np.sqrt(root.clip(min=0))) / squared, 0)
    truth = (views * depth - centre[:, None, None]) / radius
    normals, mask = normals_of(depth, EVERYWHERE)
    assert not mask[~hit].any()
    assert mask.sum() > 0.8 * hit.sum()
    assert degrees(normals[:, mask], truth[:, mask]).mean() < 0.5
    middle = (slice(None), int(CENTRE[1] - 0.3 / 4 * FOCAL[1]), int(CENTRE[0] + 0.2 / 4 * FOCAL[0]))
    assert degrees(normals[middle], -centre / np.linalg.norm(centre)) < 2


def test_normals_have_length_1_and_face_the_camera(views):
    """Whatever the depth is, also where it changes as much as it may."""
    depth = 3 * np.random.default_rng(0).uniform(1 - JUMP / 3, 1 + JUMP / 3, SIZE)
    normals, mask = normals_of(depth, EVERYWHERE)
    assert mask[REACH:-REACH, REACH:-REACH].all()
    assert np.allclose(np.linalg.norm(normals, axis=0), mask)
    assert (normals * views).sum(0)[mask].max() < 0


def test_there_are_no_normals_at_the_border_at_holes_and_at_edges():
    depth = np.full(SIZE, 2.0)
    depth[:, 300:] = 2 * (1 + 2 * JUMP)
    measured = EVERYWHERE.copy()
    measured[100, 50] = False
    depth[200, 100] = np.nan
    mask = normals_of(depth, measured)[1]
    expected = np.zeros(SIZE, dtype=bool)
    expected[REACH:-REACH, REACH:-REACH] = True
    expected[:, 300 - REACH : 300 + REACH] = False
    for row, column in ((100, 50), (200, 100)):
        for step in (-REACH, 0, REACH):
            expected[row + step, column] = expected[row, column + step] = False
    assert np.array_equal(mask, expected)


def test_the_depth_of_holes_does_not_matter():
    rng = np.random.default_rng(0)
    depth, measured = rng.uniform(2, 2.1, SIZE), rng.random(SIZE) > 0.1
    filled = np.where(measured, depth, rng.uniform(-1, 9, SIZE))
    one, other = normals_of(depth, measured), normals_of(filled, measured)
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])


@pytest.mark.parametrize("size", [(1, 1), (6, 8), (15, 14), (14, 15)])
def test_an_image_that_is_too_small_has_none(size):
    normals, mask = normals_of(np.ones(size), np.ones(size, dtype=bool))
    assert normals.shape == (3, *size)
    assert not mask.any()


@pytest.mark.parametrize("name", ["0061", "0774"])
def test_real_photographs_have_about_the_normals_that_are_shipped(samples_folder, name):
    """An axis that is exchanged or turned would be off by tens of degrees."""
    folder = samples_folder / "nyuv2_adashare"
    depth = adashare.read_depth(Place(folder / "depth" / f"{name}.npy"))[0][0]
    codes = adashare.read_normals(Place(folder / "normal_mask" / f"{name}.png"))
    truth, known = adashare.decode_normals(codes, Labels("normals"), STANDARD)
    normals, mask = normals_of(depth, EVERYWHERE)
    both = known & mask
    assert both.sum() > 0.9 * known.sum()
    angles = degrees(normals[:, both], truth[:, both])
    assert np.median(angles) < 6.5
    assert angles.mean() < 10
