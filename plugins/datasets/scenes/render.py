"""Rendering: rays against solids, textures and light, all in the camera's frame and vectorised over rays.

Camera frame: x right, y down, z forward. Rays start at the origin with z = 1, so that the parameter of a
hit is its depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .kinds import CEILING, FLOOR, STRUCTURE, WALL, Array, Look, Random
from .world import Scene

Indices = NDArray[np.int64]

FOCAL = 0.82
"""Focal length as a fraction of the image's width: 63 degrees from side to side."""
# A shape is the set where, for each group of axes, the squares of the coordinates add up to at most 1: a
# group of one axis is a slab, of two a tube, of three a ball.
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "box": ((0,), (1,), (2,)),
    "cylinder": ((0, 2), (1,)),
    "sphere": ((0, 1, 2),),
}
AMBIENT = np.array([0.36, 0.35, 0.34])
LAMPS = (
    ((-0.75, -0.55, -0.45), (0.78, 0.68, 0.52)),  # warm, from the upper left behind the camera
    ((0.85, -0.15, -0.50), (0.32, 0.43, 0.60)),  # cool, from the right
    ((0.0, 1.0, 0.0), (0.40, 0.39, 0.36)),  # what the floor sends back
)
"""Directions towards the lamps and their colours."""


@dataclass(frozen=True)
class Hits:
    """Where N rays end: depth [N] in metres, unit normals [N, 3], surface [N] and local coordinates [N, 3].

    Surfaces 0, 1, 2 are the walls, floor and ceiling, 3 + i is solid i. Local coordinates are in metres,
    along the axes of the solid.
    """

    depth: Array
    normals: Array
    surface: Indices
    local: Array


@dataclass(frozen=True)
class Picture:
    """A rendered scene: image and labels uint8, [H, W, 3] and [H, W]; normals [H, W, 3] and depth [H, W].

    Where there is no geometry, normals and depth are 0.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    normals: NDArray[np.float32]
    depth: NDArray[np.float32]


def pixel_rays(height: int, width: int, shift: float = 0.0) -> Array:
    """Return the rays [N, 3] through the pixels' centres, row by row.

    With `shift` 0.5 they go through the pixels' corners instead, one more a row and a column.
    """
    extra = 2 * shift
    rows, columns = np.mgrid[0 : height + extra, 0 : width + extra]
    focal = FOCAL * width
    x = (columns - shift - (width - 1) / 2) / focal
    y = (rows - shift - (height - 1) / 2) / focal
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)


def spans(shape: str, origin: Array, directions: Array) -> tuple[list[Array], list[Array]]:
    """Return, for each group of the shape's axes, where rays enter and leave it: two lists of [N].

    `origin` [3] and `directions` [N, 3] are in the frame in which the shape is a unit shape. A ray that
    misses enters at infinity.
    """
    enter, leave = [], []
    for group in SHAPES[shape]:
        axes = list(group)
        slope = directions[:, axes]
        a = np.maximum(np.einsum("nk,nk->n", slope, slope), 1e-18)
        b = slope @ origin[axes]
        discriminant = b * b - a * (origin[axes] @ origin[axes] - 1)
        root = np.sqrt(np.maximum(discriminant, 0))
        enter.append(np.where(discriminant > 0, (-b - root) / a, np.inf))
        leave.append((-b + root) / a)
    return enter, leave


def on_group(shape: str, group: Indices, points: Array) -> Array:
    """Return `points` [N, 3] with 0 on the axes outside each one's group: normals of the unit shape."""
    inside = np.zeros((len(SHAPES[shape]), 3))
    for number, axes in enumerate(SHAPES[shape]):
        inside[number, list(axes)] = 1
    kept: Array = points * inside[group]
    return kept


def hit_room(scene: Scene, rays: Array) -> Hits:
    """Return where rays from inside the room reach its walls, floor and ceiling."""
    to_camera, half = scene.camera.rotation, scene.room.half
    origin = (scene.camera.position - scene.room.centre) / half
    directions = (rays @ to_camera) / half
    _, leave = spans("box", origin, directions)
    group = np.argmin(leave, axis=0)
    depth = np.min(leave, axis=0)
    local = origin + depth[:, None] * directions
    outward = on_group("box", group, np.sign(local))
    surface = np.where(group == 1, np.where(local[:, 1] > 0, FLOOR, CEILING), WALL)
    return Hits(depth, -outward @ to_camera.T, surface, local * half)


def hit_solids(scene: Scene, rays: Array, hits: Hits) -> None:
    """Let every solid that is nearer than what the rays have hit so far take their place in `hits`."""
    unit = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    for number, solid in enumerate(scene.solids):
        axes = scene.camera.rotation @ solid.axes
        centre = scene.camera.rotation @ (solid.centre - scene.camera.position)
        sizes = np.linalg.norm(axes, axis=0)
        # Only rays inside the cone around the bounding ball can hit.
        sine = np.linalg.norm(sizes) / np.linalg.norm(centre)
        cosine = np.sqrt(1 - sine**2) if sine < 1 else -1.0
        near = np.flatnonzero(unit @ (centre / np.linalg.norm(centre)) >= cosine)
        inverse = np.linalg.inv(axes)
        origin, directions = -inverse @ centre, rays[near] @ inverse.T
        enter, leave = spans(solid.shape, origin, directions)
        first, last = np.max(enter, axis=0), np.min(leave, axis=0)
        taken = np.flatnonzero((first < last) & (first > 0) & (first < hits.depth[near]))
        where, depth = near[taken], first[taken]
        local = origin + depth[:, None] * directions[taken]
        outward = on_group(solid.shape, np.argmax(enter, axis=0)[taken], local) @ inverse
        hits.depth[where] = depth
        hits.normals[where] = outward / np.linalg.norm(outward, axis=1, keepdims=True)
        hits.surface[where] = STRUCTURE + number
        hits.local[where] = local * sizes


def cast(scene: Scene, rays: Array) -> Hits:
    """Return the nearest surface that each ray [N, 3] hits."""
    hits = hit_room(scene, rays)
    hit_solids(scene, rays, hits)
    return hits


def pattern(look: Look, local: Array, upward: NDArray[np.bool_]) -> Array:
    """Return the share of the second colour, in [0, 1], at points [N, 3]; `upward` marks level surfaces."""
    across = np.where(upward, local[:, 0], local[:, 0] + local[:, 2])
    along = np.where(upward, local[:, 2], local[:, 1])
    turn = 2 * np.pi / look.period
    u, v = turn * across + 2 * np.pi * look.phase, turn * along + look.phase
    waves = {
        "plain": np.full_like(u, -1.0),
        "stripes": np.sin(u),
        "bands": np.sin(v),
        "checks": np.sin(u) * np.sin(v),
        "grain": np.sin(0.7 * u + 1.5 * np.sin(1.3 * v)) * np.cos(0.9 * v + 1.2 * np.sin(0.6 * u)),
    }
    sharp: Array = 0.5 + 0.5 * np.tanh(2.5 * waves[look.pattern])
    return sharp


def paint(scene: Scene, hits: Hits, rays: Array, width: int) -> Array:
    """Return the colour [N, 3] of every hit under white light; patterns too fine for the pixels fade."""
    facing = np.abs(np.einsum("nk,nk->n", hits.normals, rays)) / np.linalg.norm(rays, axis=1)
    footprint = hits.depth / (FOCAL * width) / np.maximum(facing, 0.15)
    upward = np.abs(hits.normals @ scene.camera.rotation[:, 1]) > 0.8
    colours = np.empty_like(rays)
    for number, look in enumerate(surface_looks(scene)):
        here = np.flatnonzero(hits.surface == number)
        visible = np.clip(look.period / footprint[here] / 3 - 0.8, 0, 1)
        share = 0.5 + visible * (pattern(look, hits.local[here], upward[here]) - 0.5)
        share = np.where(look.pattern == "plain", 0.0, share)[:, None]
        colours[here] = look.first + share * (look.second - look.first)
    return colours


def surface_looks(scene: Scene) -> list[Look]:
    """Return the look of every surface, in the order of `Hits.surface`."""
    return [*scene.room.looks, *(solid.look for solid in scene.solids)]


def light(scene: Scene, hits: Hits, rays: Array) -> Array:
    """Return the light [N, 3] that reaches every hit: from the lamps and, less, from all sides.

    The lamps move with the camera, so that shading says which way a surface faces.
    """
    received = np.tile(AMBIENT, (len(rays), 1))
    for towards, colour in LAMPS:
        slant = hits.normals @ (np.array(towards) / np.linalg.norm(towards))
        received += np.maximum(slant, 0)[:, None] * np.array(colour)
    fading = 1.1 / (1 + (hits.depth / 12) ** 2)
    lit: Array = scene.exposure * received * (fading * contact(scene, hits, rays))[:, None]
    return lit


def contact(scene: Scene, hits: Hits, rays: Array) -> Array:
    """Return how much of the light [N], in (0, 1], solids leave to the parts of the room that they touch."""
    left = np.ones(len(hits.depth))
    room = np.flatnonzero(hits.surface < STRUCTURE)
    points = rays[room] * hits.depth[room, None]
    for solid in scene.solids:
        axes = scene.camera.rotation @ solid.axes
        offset = points - scene.camera.rotation @ (solid.centre - scene.camera.position)
        sizes = np.linalg.norm(axes, axis=0)
        near = np.flatnonzero(np.einsum("nk,nk->n", offset, offset) < (np.linalg.norm(sizes) + 0.5) ** 2)
        beyond = np.maximum(np.abs(offset[near] @ (axes / sizes)) - sizes, 0)
        left[room[near]] *= 1 - 0.45 * np.exp(-np.linalg.norm(beyond, axis=1) / 0.12)
    return left


def shade(scene: Scene, hits: Hits, rays: Array, width: int) -> Array:
    """Return the colour [N, 3] that each ray sees, in [0, 1]."""
    openings = np.array([look.opening for look in surface_looks(scene)])
    lit = np.where(openings[hits.surface, None], 1.0, light(scene, hits, rays))
    seen: Array = np.clip(paint(scene, hits, rays, width) * lit, 0, 1)
    return seen


def render(scene: Scene, height: int, width: int, rng: Random) -> Picture:
    """Return the picture of a scene with exact labels at the pixels' centres; `rng` makes the sensor's noise.

    A pixel's colour is half that of its centre and half that of its four corners, against jagged edges.
    """
    rays, between = pixel_rays(height, width), pixel_rays(height, width, shift=0.5)
    hits = cast(scene, rays)
    centres = shade(scene, hits, rays, width).reshape(height, width, 3)
    corners = shade(scene, cast(scene, between), between, width).reshape(height + 1, width + 1, 3)
    around = corners[:-1, :-1] + corners[1:, :-1] + corners[:-1, 1:] + corners[1:, 1:]
    colours = (centres / 2 + around / 8) * 255 + rng.normal(0, 2, (height, width, 3))
    classes = np.array([WALL, FLOOR, CEILING, *(solid.label for solid in scene.solids)], dtype=np.uint8)
    openings = np.array([look.opening for look in surface_looks(scene)])[hits.surface]
    normals = np.where(openings[:, None], 0, hits.normals)
    depth = np.where(openings, 0, hits.depth)
    return Picture(
        image=np.clip(np.rint(colours), 0, 255).astype(np.uint8),
        labels=classes[hits.surface].reshape(height, width),
        normals=normals.reshape(height, width, 3).astype(np.float32),
        depth=depth.reshape(height, width).astype(np.float32),
    )
