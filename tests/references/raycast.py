"""A slow ray caster in plain Python: one ray at a time, planes and spheres by their textbook equations.

Everything is in the camera's frame (x right, y down, z forward); rays start at the origin with z = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Vector = Sequence[float]
Hit = tuple[float, list[float]]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def sphere_hits(ray: Vector, centre: Vector, radius: float) -> Iterator[Hit]:
    """Yield the depth and outward normal of both points where a ray crosses a sphere."""
    middle = dot(ray, centre) / dot(ray, ray)
    inside = radius**2 - sum((middle * r - c) ** 2 for r, c in zip(ray, centre, strict=True))
    if inside <= 0:
        return
    for sign in (-1, 1):
        depth = middle + sign * math.sqrt(inside / dot(ray, ray))
        yield depth, [(depth * r - c) / radius for r, c in zip(ray, centre, strict=True)]


def box_hits(ray: Vector, centre: Vector, sides: Sequence[Vector], halves: Vector) -> Iterator[Hit]:
    """Yield the depth and outward normal wherever a ray crosses one of the six faces of a box.

    `sides` are its three unit directions, `halves` its half extents.
    """
    for axis in range(3):
        for sign in (-1, 1):
            normal = [sign * s for s in sides[axis]]
            slope = dot(ray, normal)
            if slope == 0:
                continue
            depth = (dot(centre, normal) + halves[axis]) / slope
            offset = [depth * r - c for r, c in zip(ray, centre, strict=True)]
            others = [other for other in range(3) if other != axis]
            if all(abs(dot(offset, sides[other])) <= halves[other] for other in others):
                yield depth, normal


def first_hit(ray: Vector, hits: Iterator[Hit]) -> Hit:
    """Return the nearest hit in front of the camera, its normal turned towards the camera."""
    depth, normal = min((hit for hit in hits if hit[0] > 0), key=lambda hit: hit[0])
    facing = -1.0 if dot(normal, ray) > 0 else 1.0
    return depth, [facing * n for n in normal]
