"""Pictures: a sheet with an image and all its labels side by side, as a person would want to see them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mtlprune_bench.adapters import Dataset, Sample
from mtlprune_bench.data.formats import Array
from mtlprune_bench.tasks import Labels, Task

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

SIDE = 640
"""What the longer side of a picture on the sheet may have, in pixels; it comes near it by a whole factor."""
NARROWEST = 320
"""The width of a panel whose picture is narrower, in pixels, for its captions."""
COLUMNS = {1: 1, 2: 2, 3: 3, 4: 2}
"""How many panels stand side by side, by their number; three of more."""
MARGIN, GAP = 32, 24
TITLE, HEADING, TEXT = 26, 18, 14
"""Sizes of letters in pixels; a line of text takes one and a half times as much."""
INK, PALE, PAPER = "#18181b", "#63636b", "#f4f4f5"
STRIPES, STRIPE = ((112, 112, 120), (144, 144, 152)), 6
"""The greys of the pixels without a label, and how many pixels of a row a stripe takes."""
CHIP, BAR, STEPS = 13, 14, 256


@dataclass(frozen=True)
class Legend:
    """What each colour of a picture stands for: colours uint8 [N, 3], and a word for each."""

    colours: Array
    words: tuple[str, ...]


@dataclass(frozen=True)
class Bar:
    """The colours of a picture, uint8 [N, 3], from the lowest value to the highest, and these in words."""

    colours: Array
    low: str
    high: str


@dataclass(frozen=True)
class Panel:
    """A picture, uint8 [H, W, 3], with its captions, where it is valid, bool [H, W], and its key."""

    heading: str
    facts: str
    picture: Array
    mask: Array
    key: Legend | Bar | None = None


def draw(sample: Sample, dataset: Dataset, tasks: Mapping[str, Task], title: str) -> Image:
    """Return a sheet, RGB, of an image and its labels, those of `dataset`, and what their colours mean.

    Pictures are enlarged or reduced by a whole factor, without interpolation; pixels without a label are
    striped. The same arguments give the same pixels.
    """
    pixels = sample.image.numpy().transpose(1, 2, 0)
    height, width = pixels.shape[:2]
    panels = [Panel("image", f"{height} × {width} pixels", pixels, np.ones((height, width), dtype=bool))]
    for labels in dataset.labels:
        target, mask = (by_task[labels.task].numpy() for by_task in (sample.targets, sample.masks))
        panels.append(describe(tasks[labels.task], labels, target, mask))
    complete = all(panel.mask.all() for panel in panels)
    about = dataset.description + ("" if complete else " Pixels without a label are striped.")
    return _sheet([_card(panel) for panel in panels], title, about)


def describe(task: Task, labels: Labels, target: Array, mask: Array) -> Panel:
    """Return the panel of a task, for `target` [..., H, W] and `mask` bool [H, W]."""
    picture = task.picture(target, mask, labels)
    if not mask.any():
        return Panel(task.name, "no pixel is valid", picture, mask)
    valid = f"{_share(mask.mean())} valid"
    if labels.classes:
        legend = class_legend(target, mask, picture)
        facts = f"{len(legend.words)} of {labels.classes} classes, {valid}"
        return Panel(task.name, facts, picture, mask, legend)
    channels = target.reshape(-1, *mask.shape)
    unit = f" {labels.unit}" if labels.unit else ""
    values = channels[:, mask]
    several = f"{len(channels)} channels, " if len(channels) > 1 else ""
    facts = f"{several}{_number(values.min())} to {_number(values.max())}{unit}, {valid}"
    bar = colour_bar(channels[0], mask, picture, unit) if len(channels) == 1 else None
    return Panel(task.name, facts, picture, mask, bar)


def class_legend(target: Array, mask: Array, picture: Array) -> Legend:
    """Return the colour of each class that occurs, with its number and its share of the valid pixels."""
    classes, first, counts = np.unique(target[mask], return_index=True, return_counts=True)
    shares = counts / counts.sum()
    words = (f"{number}: {_share(share)}" for number, share in zip(classes, shares, strict=True))
    return Legend(picture[mask][first], tuple(words))


def colour_bar(values: Array, mask: Array, picture: Array, unit: str = "") -> Bar:
    """Return the colours of the valid `values` [H, W], read off the picture, where they change."""
    order = np.argsort(values[mask], kind="stable")
    ordered, colours = values[mask][order], picture[mask][order]
    changes = np.flatnonzero((colours[1:] != colours[:-1]).any(axis=-1))
    first, last = (changes[0], changes[-1] + 1) if len(changes) else (0, len(ordered) - 1)
    # An end colour stands for a step of the scale at least; only beyond is there more than it can show.
    step = 2 * (ordered[last] - ordered[first]) / STEPS
    below, above = ordered[first] - ordered[0] > step, ordered[-1] - ordered[last] > step
    low, high = ordered[first if below else 0], ordered[last if above else -1]
    shown = np.searchsorted(ordered, np.linspace(low, high, STEPS)).clip(max=len(ordered) - 1)
    return Bar(
        colours[shown],
        f"{'≤ ' if below else ''}{_number(low)}{unit}",
        f"{'≥ ' if above else ''}{_number(high)}{unit}",
    )


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _share(share: float) -> str:
    """Return a share in percent, in words that never round to nothing or to all."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return "100 %" if share == 1 else f"{100 * share:.1f} %"


def _card(panel: Panel) -> Image:
    """Return a panel as it stands on the sheet: heading, facts, picture, key."""
    from PIL import Image, ImageDraw

    pixels = fit(panel.picture, panel.mask)
    height, width = pixels.shape[:2]
    captions = (
        (0, panel.heading, INK, _font(HEADING, bold=True)),
        (_line(HEADING), panel.facts, PALE, _font(TEXT)),
    )
    key = _key(panel.key, max(width, NARROWEST))
    widths = [math.ceil(font.getlength(caption)) for _, caption, _, font in captions]
    top = _line(HEADING) + _line(TEXT) + GAP // 4
    bottom = top + height + (GAP // 2 + key.height if key else 0)
    card = Image.new("RGB", (max(width, NARROWEST, key.width if key else 0, *widths), bottom), PAPER)
    canvas = ImageDraw.Draw(card)
    for down, caption, colour, font in captions:
        canvas.text((0, down), caption, colour, font)
    card.paste(Image.fromarray(pixels), (0, top))
    if key:
        card.paste(key, (0, top + height + GAP // 2))
    return card


def fit(picture: Array, mask: Array) -> Array:
    """Return a picture enlarged or reduced by a whole factor, striped where it is not valid."""
    side = max(mask.shape)
    times, every = max(SIDE // side, 1), -(-side // SIDE)
    pixels, shown = (
        array[::every, ::every].repeat(times, axis=0).repeat(times, axis=1) for array in (picture, mask)
    )
    rows, columns = np.indices(shown.shape)
    stripes = np.array(STRIPES, dtype=np.uint8)[(rows + columns) // STRIPE % 2]
    striped: Array = np.where(shown[..., None], pixels, stripes)
    return striped


def _key(key: Legend | Bar | None, width: int) -> Image | None:
    """Return a key, `width` pixels wide or as many as its words need."""
    if key is None:
        return None
    return _legend(key, width) if isinstance(key, Legend) else _bar(key, width)


def _legend(legend: Legend, width: int) -> Image:
    """Return the colours with their words, in as many columns as there is room for."""
    from PIL import Image, ImageDraw

    font, line = _font(TEXT), _line(TEXT)
    entry = CHIP + GAP + int(max(font.getlength(word) for word in legend.words))
    across = max((width + GAP // 2) // entry, 1)
    picture = Image.new("RGB", (max(width, entry), line * -(-len(legend.words) // across)), PAPER)
    canvas = ImageDraw.Draw(picture)
    for number, (colour, word) in enumerate(zip(legend.colours.tolist(), legend.words, strict=True)):
        left, middle = number % across * entry, number // across * line + line // 2
        chip = (left, middle - CHIP // 2, left + CHIP - 1, middle + CHIP // 2)
        canvas.rectangle(chip, fill=tuple(colour))
        canvas.text((left + CHIP + GAP // 4, middle), word, INK, font, anchor="lm")
    return picture


def _bar(bar: Bar, width: int) -> Image:
    """Return the colours from left to right, the ends in words below."""
    from PIL import Image, ImageDraw

    font = _font(TEXT)
    width = max(width, math.ceil(font.getlength(bar.low) + font.getlength(bar.high)) + GAP)
    picture = Image.new("RGB", (width, BAR + _line(TEXT)), PAPER)
    strip = Image.fromarray(np.ascontiguousarray(bar.colours[None]))
    picture.paste(strip.resize((width, BAR), Image.Resampling.NEAREST), (0, 0))
    canvas = ImageDraw.Draw(picture)
    middle = BAR + _line(TEXT) // 2 + 1
    canvas.text((0, middle), bar.low, INK, font, anchor="lm")
    canvas.text((width, middle), bar.high, INK, font, anchor="rm")
    return picture


def _sheet(cards: list[Image], title: str, about: str) -> Image:
    """Return the cards in rows, under the title and what it is about."""
    from PIL import Image, ImageDraw

    across = COLUMNS.get(len(cards), 3)
    wide = max(card.width for card in cards)
    rows = [cards[first : first + across] for first in range(0, len(cards), across)]
    heights = [max(card.height for card in row) for row in rows]
    width = 2 * MARGIN + across * wide + (across - 1) * GAP
    lines = [(line, TITLE, INK) for line in _wrapped(title, _font(TITLE, bold=True), width - 2 * MARGIN)]
    lines += [(line, TEXT, PALE) for line in _wrapped(about, _font(TEXT), width - 2 * MARGIN)]
    top = MARGIN + sum(_line(letters) for _, letters, _ in lines) + GAP
    height = top + sum(heights) + (len(rows) - 1) * GAP + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    canvas = ImageDraw.Draw(sheet)
    down = MARGIN
    for line, letters, colour in lines:
        canvas.text((MARGIN, down), line, colour, _font(letters, bold=letters == TITLE))
        down += _line(letters)
    for row, row_height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            sheet.paste(card, (MARGIN + column * (wide + GAP), top))
        top += row_height + GAP
    return sheet


def _wrapped(text: str, font: FreeTypeFont, width: int) -> list[str]:
    """Return a text in lines of at most `width` pixels, broken at spaces where there are any."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def _line(size: int) -> int:
    """Return the height in pixels of a line of letters of `size`."""
    return size * 3 // 2


@functools.cache
def _font(size: int, bold: bool = False) -> FreeTypeFont:
    """Return the letters that come with matplotlib, so that a sheet looks the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size)
