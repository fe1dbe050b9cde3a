"""MATLAB's files, version 5: the array of numbers under a name.

SciPy reads them too, but ends the process where bytes are damaged. The format is MathWorks' "MAT-File Format":
128 bytes of header, then elements, each with a tag of its type and size. An array is an element made of elements.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER = 128
VERSION = 0x0100
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""NumPy's types of the elements' types."""
CLASSES = range(6, 16)
"""Arrays of whole or floating numbers, among those of characters, cells, structures and the like."""
LARGEST = 1 << 26
"""Bytes that an array is unpacked to at most: what claims more is damaged."""


def read_numbers(data: bytes, key: str) -> NDArray[Any] | None:
    """Return the numbers under `key` of a file's `data`, [N] in the order of columns; None where there are none.

    Complex arrays give their real part. Raises ValueError where the data are damaged or of another version.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:HEADER], "")
    if not order or int(np.frombuffer(data, f"{order}u2", 1, 124)[0]) != VERSION:
        raise ValueError("it has no header of version 5")
    for kind, body in _elements(data[HEADER:], order):
        for inner, content in _elements(_unpacked(body), order) if kind == COMPRESSED else [(kind, body)]:
            if inner == MATRIX and (found := _numbers(content, order, key)) is not None:
                return found
    return None


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the bytes of each element in `data`. Raises ValueError where one is cut short."""
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise ValueError("it is cut short")
        kind, size = (int(number) for number in np.frombuffer(data, f"{order}u4", 2, place))
        start = place + 8
        if kind >> 16:  # up to four bytes stand in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            place += 8
        else:
            place = start + size + (0 if kind == COMPRESSED else -size % 8)
        if start + size > min(place, len(data)):
            raise ValueError("it is cut short")
        yield kind, data[start : start + size]


def _unpacked(packed: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(packed, LARGEST)
    if not unpacking.eof:
        raise ValueError("a packed array is cut short")
    return data


def _numbers(content: bytes, order: str, key: str) -> NDArray[Any] | None:
    """Return the numbers of an array, flat; None if its name is not `key`, or it is not of numbers."""
    parts = _elements(content, order)
    (_, flags), (_, sizes), (_, name) = (next(parts, (0, b"")) for _ in range(3))
    if name != key.encode() or len(flags) != 8:
        return None
    if int(np.frombuffer(flags, f"{order}u4")[0]) & 0xFF not in CLASSES:
        return None
    kind, values = next(parts, (0, b""))
    if kind not in NUMBERS:
        raise ValueError(f"'{key}' has no numbers")
    numbers = np.frombuffer(values, f"{order}{NUMBERS[kind]}")
    if len(numbers) != np.prod(np.frombuffer(sizes, f"{order}i4"), dtype=np.float64):
        raise ValueError(f"'{key}' has not as many numbers as it says")
    return numbers
