"""Augmentation the slow way: the enlarged, padded and mirrored picture is made in full, pixel by pixel."""

from __future__ import annotations

import math
from fractions import Fraction


def enlarged_labels(labels, height, width, resize):
    """Return a table of rows at `height` x `width`: each pixel takes the label below its corner or its centre."""
    offset = Fraction(1, 2) if resize == "aligned" else 0
    return [
        [labels[math.floor((row + offset) * len(labels) / height)]
               [math.floor((column + offset) * len(labels[0]) / width)]
         for column in range(width)]
        for row in range(height)
    ]  # fmt: skip


def enlarged_image(image, height, width):
    """Return a table of rows of numbers at `height` x `width`, bilinear between pixel centres."""

    def place(index, length, count):
        centre = min(max((index + 0.5) * length / count - 0.5, 0), length - 1)
        low = math.floor(centre)
        return low, min(low + 1, length - 1), centre - low

    result = []
    for row in range(height):
        up, down, lower = place(row, len(image), height)
        line = []
        for column in range(width):
            left, right, later = place(column, len(image[0]), width)
            above = image[up][left] * (1 - later) + image[up][right] * later
            below = image[down][left] * (1 - later) + image[down][right] * later
            line.append(above * (1 - lower) + below * lower)
        result.append(line)
    return result


def padded(table, crop, fill):
    """Return `table` with `fill` around it where it is smaller than `crop`; the odd one below or to the right."""
    height, width = len(table), len(table[0])
    missing_rows, missing_columns = max(crop - height, 0), max(crop - width, 0)
    left, top = missing_columns // 2, missing_rows // 2
    lines = [[fill] * left + line + [fill] * (missing_columns - left) for line in table]
    empty = [fill] * (width + missing_columns)
    return [empty] * top + lines + [empty] * (missing_rows - top)


def cut(table, crop, top, left, mirror):
    """Return the square of `crop` at row `top`, column `left`, turned left to right if `mirror`."""
    square = [line[left : left + crop] for line in table[top : top + crop]]
    return [line[::-1] for line in square] if mirror else square
