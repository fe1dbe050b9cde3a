"""Where everything is: a room, the objects in it and a camera, drawn from one generator.

World frame: x right, y down, z forward, in metres; the floor is y = 0 and the room begins at z = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .kinds import (
    KINDS,
    OBJECTS,
    SHARES,
    STRUCTURE,
    VOID,
    WINDOW,
    Array,
    Family,
    Look,
    Random,
    object_look,
    room_looks,
)


@dataclass(frozen=True)
class Solid:
    """The affine image of a unit shape: `axes` [3, 3] has its half extents as columns, in metres."""

    shape: str
    centre: Array
    axes: Array
    look: Look
    label: int


@dataclass(frozen=True)
class Room:
    """A box that is seen from inside, and the looks of its walls, floor and ceiling, in this order."""

    centre: Array
    half: Array
    looks: tuple[Look, Look, Look]


@dataclass(frozen=True)
class Camera:
    """Where the camera is; the rows of `rotation` [3, 3] are its right, down and forward in the world."""

    position: Array
    rotation: Array


@dataclass(frozen=True)
class Scene:
    """A room with solids in it, seen by a camera under light of a certain `exposure` (about 1)."""

    room: Room
    solids: tuple[Solid, ...]
    camera: Camera
    exposure: float


@dataclass(frozen=True)
class Wall:
    """The end, high or low, of an axis of the room, and the turn (radians) of what has its back to it."""

    axis: int
    high: bool
    turn: float


WALLS = (Wall(2, True, 0.0), Wall(0, True, math.pi / 2), Wall(0, False, -math.pi / 2))
"""The far, right and left walls. The one behind the camera is never seen."""


def upright(turn: float) -> Array:
    """Return the rotation [3, 3] by `turn` radians, to the right as seen from above, about the vertical."""
    cosine, sine = math.cos(turn), math.sin(turn)
    return np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])


def look_at(position: Array, yaw: float, pitch: float, roll: float) -> Camera:
    """Return a camera; radians: `yaw` to the right, `pitch` down, `roll` clockwise."""
    forward = np.array([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])
    level = np.array([math.cos(yaw), 0.0, -math.sin(yaw)])
    right = math.cos(roll) * level + math.sin(roll) * np.cross(forward, level)
    return Camera(position, np.stack([right, np.cross(forward, right), forward]))


@dataclass(frozen=True)
class Placed:
    """An object in its place: the corner `low` and `high` of its bounding box, and its solids."""

    low: Array
    high: Array
    solids: tuple[Solid, ...]


def draw_sizes(family: Family, rng: Random) -> Array:
    """Return the half width, the height and the half depth of an object, in metres."""
    width, depth = rng.uniform(*family.half_width), rng.uniform(*family.half_depth)
    height = rng.uniform(*family.height)
    return np.array(
        [width, 2 * width if family.equal_sides == 3 else height, width if family.equal_sides > 1 else depth]
    )


def place(kind: int, label: int, room: Room, rng: Random) -> Placed:
    """Return an object of `kind` somewhere in the room, touching the floor or a wall and crossing neither."""
    family, _ = KINDS[kind]
    sizes = draw_sizes(family, rng)
    wall = None if family.stands == "free" else int(rng.integers(len(WALLS)))
    turn = rng.uniform(-math.pi, math.pi) if wall is None else WALLS[wall].turn
    axes = upright(turn) * sizes
    reach = np.abs(axes[:, [0, 2]]).sum(axis=1)
    low, high = room.centre - room.half + reach, room.centre + room.half - reach
    foot = np.array([rng.uniform(low[0], high[0]), 0.0, rng.uniform(low[2], high[2])])
    if wall is not None:
        axis = WALLS[wall].axis
        foot[axis] = (high if WALLS[wall].high else low)[axis]
    if family.stands == "hang":
        foot[1] = rng.uniform(-1.2, -0.8)
    look = object_look(kind, rng)
    solids = tuple(
        Solid(part.shape, foot + axes @ np.array(part.centre), axes * np.array(part.half), look, label)
        for part in family.parts
    )
    return Placed(foot - reach - np.array([0.0, sizes[1], 0.0]), foot + reach, solids)


def fits(new: Placed, others: list[Placed], camera: Camera) -> bool:
    """Return whether an object is in view, not at the camera's nose, and clear of the others."""
    seen = camera.rotation @ ((new.low + new.high) / 2 - camera.position)
    gap = np.maximum(np.maximum(new.low - camera.position, camera.position - new.high), 0)[[0, 2]]
    if seen[2] < 1 or abs(seen[0]) > 0.6 * seen[2] or np.hypot(*gap) < 0.9:
        return False
    return not any((new.low - 0.05 < other.high).all() and (other.low - 0.05 < new.high).all() for other in others)


def furnish(room: Room, camera: Camera, rng: Random) -> list[Placed]:
    """Return the objects of a scene: up to nine with a class, and in one of seven scenes one without."""
    kinds = [int(kind) for kind in rng.choice(OBJECTS, size=int(rng.integers(5, 10)), p=SHARES)]
    labels = [STRUCTURE + kind for kind in kinds]
    if rng.uniform() < 1 / 7:
        kinds, labels = [int(rng.integers(WINDOW)), *kinds], [VOID, *labels]
    placed: list[Placed] = []
    for kind, label in zip(kinds, labels, strict=True):
        tries = (place(kind, label, room, rng) for _ in range(20))
        found = next((new for new in tries if fits(new, placed, camera)), None)
        if found is not None:
            placed.append(found)
    return placed


def draw_scene(rng: Random) -> Scene:
    """Return a scene whose every choice comes from `rng`."""
    half = np.array([rng.uniform(1.7, 3.0), rng.uniform(1.2, 1.5), rng.uniform(2.2, 3.8)])
    room = Room(np.array([0.0, -half[1], half[2]]), half, room_looks(rng))
    position = np.array([rng.uniform(-0.5, 0.5) * half[0], -rng.uniform(1.1, 1.7), rng.uniform(0.3, 0.9)])
    degrees = rng.uniform([-32, 2, -3], [32, 18, 3])
    camera = look_at(position, *np.radians(degrees))
    solids = tuple(solid for new in furnish(room, camera, rng) for solid in new.solids)
    return Scene(room, solids, camera, exposure=rng.uniform(0.9, 1.15))
