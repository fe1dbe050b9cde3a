"""What is in a scene: the kinds of objects, how often each occurs, and how everything looks."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Span = tuple[float, float]
Random = np.random.Generator

WALL, FLOOR, CEILING = 0, 1, 2
STRUCTURE = 3
"""Number of structural classes; the classes of objects come after them."""
VOID = 255
"""The label of pixels without a class."""
PATTERNS = ("plain", "stripes", "checks", "bands", "grain")


@dataclass(frozen=True)
class Look:
    """How a surface looks: two RGB colours in [0, 1] mixed by a pattern with a `period` in metres.

    An `opening` is what a window shows: bright, not lit by the room, and without geometry.
    """

    first: Array
    second: Array
    pattern: str
    period: float
    phase: float
    opening: bool = False


@dataclass(frozen=True)
class Part:
    """A unit shape inside the bounding box of an object: x and z in [-1, 1], y in [-1 (top), 0 (floor)]."""

    shape: str
    centre: tuple[float, float, float]
    half: tuple[float, float, float]


@dataclass(frozen=True)
class Family:
    """Classes of one shape: `count` of them, with sizes in metres.

    Its objects stand `free`, at a `wall` or `hang` on one. Of width, depth and height, in this order, the first
    `equal_sides` are the same.
    """

    name: str
    count: int
    half_width: Span
    half_depth: Span
    height: Span
    parts: tuple[Part, ...]
    stands: str = "free"
    equal_sides: int = 1


WHOLE = ((0.0, -0.5, 0.0), (1.0, 0.5, 1.0))
SEAT = Part("box", (0.0, -0.25, 0.0), (1.0, 0.25, 1.0))
FAMILIES = (
    Family("cabinet", 6, (0.3, 0.65), (0.2, 0.35), (0.9, 1.9), (Part("box", *WHOLE),), "wall"),
    Family(
        "table",
        5,
        (0.4, 0.75),
        (0.35, 0.5),
        (0.6, 0.85),
        (
            Part("box", (0.0, -0.94, 0.0), (1.0, 0.06, 1.0)),
            Part("cylinder", (0, -0.44, 0), (0.25, 0.44, 0.25)),
        ),
    ),
    Family(
        "chair",
        6,
        (0.25, 0.6),
        (0.25, 0.35),
        (0.8, 1.0),
        (SEAT, Part("box", (0.0, -0.75, 0.75), (1.0, 0.25, 0.25))),
    ),
    Family(
        "bed",
        4,
        (0.5, 0.8),
        (0.8, 1.0),
        (0.6, 0.9),
        (SEAT, Part("box", (0.0, -0.75, 0.95), (1.0, 0.25, 0.05))),
        "wall",
    ),
    Family("ball", 5, (0.22, 0.42), (0.22, 0.42), (0.44, 0.84), (Part("sphere", *WHOLE),), equal_sides=3),
    Family("drum", 5, (0.18, 0.35), (0.18, 0.35), (0.4, 1.0), (Part("cylinder", *WHOLE),), equal_sides=2),
    Family(
        "lamp",
        3,
        (0.18, 0.3),
        (0.18, 0.3),
        (1.2, 1.7),
        (
            Part("sphere", (0.0, -0.86, 0.0), (1.0, 0.14, 1.0)),
            Part("cylinder", (0.0, -0.37, 0.0), (0.22, 0.37, 0.22)),
        ),
        equal_sides=2,
    ),
    Family("panel", 3, (0.35, 0.7), (0.015, 0.03), (0.5, 1.0), (Part("box", *WHOLE),), "hang"),
)
OBJECTS = sum(family.count for family in FAMILIES)
CLASSES = STRUCTURE + OBJECTS
KINDS = tuple((family, member) for family in FAMILIES for member in range(family.count))
WINDOW = OBJECTS - 1
"""The last kind, a panel, is a window."""


def _shares() -> Array:
    """Return how often each kind of object is drawn, [OBJECTS]: 1 to 7 between the rarest and commonest."""
    ranks = np.arange(OBJECTS) * 17 % OBJECTS
    shares = (ranks + 1.0) ** -0.55
    normalised: Array = shares / shares.sum()
    return normalised


SHARES = _shares()


def colour(hue: float, saturation: float, value: float) -> Array:
    """Return RGB in [0, 1]; `hue` is a turn, of which the whole part is left out."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, min(saturation, 1.0), min(value, 1.0)))


def object_look(kind: int, rng: Random) -> Look:
    """Return a look of a kind of object: its class's hue and pattern, with some variation."""
    family, member = KINDS[kind]
    if kind == WINDOW:
        return Look(colour(0.57, 0.35, 1.0), np.ones(3), "bands", 4.0, rng.uniform(), opening=True)
    place = FAMILIES.index(family)
    hue = member / family.count + 0.13 * place + rng.normal(0, 0.015)
    saturation, value = rng.uniform(0.6, 0.9), rng.uniform(0.65, 0.95)
    pattern = PATTERNS[(member + place) % len(PATTERNS)]
    second = colour(hue + rng.normal(0.04, 0.02), saturation * 0.8, value * 0.5)
    return Look(colour(hue, saturation, value), second, pattern, rng.uniform(0.2, 0.4), rng.uniform())


def room_looks(rng: Random) -> tuple[Look, Look, Look]:
    """Return looks of walls (pale), floor (brown or grey) and ceiling (white)."""
    hue = rng.uniform()
    pale, value = rng.uniform(0.03, 0.2), rng.uniform(0.7, 0.92)
    wall = Look(
        colour(hue, pale, value),
        colour(hue, pale + 0.08, value * 0.88),
        str(rng.choice(["plain", "stripes", "grain"])),
        rng.uniform(0.3, 0.8),
        rng.uniform(),
    )
    hue, saturation, value = rng.uniform(0.04, 0.12), rng.uniform(0.05, 0.5), rng.uniform(0.35, 0.65)
    floor = Look(
        colour(hue, saturation, value),
        colour(hue, saturation, value * 0.7),
        str(rng.choice(["stripes", "checks", "grain"])),
        rng.uniform(0.25, 0.8),
        rng.uniform(),
    )
    white = colour(0.12, rng.uniform(0, 0.05), rng.uniform(0.88, 0.98))
    return wall, floor, Look(white, white, "plain", 1.0, 0.0)
