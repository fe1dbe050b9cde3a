"""Figures: one style for all of them, in which a method looks the same wherever it occurs, also in grey."""

from __future__ import annotations

import hashlib
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlprune_bench.errors import UsageError
from mtlprune_bench.files import write_atomic
from mtlprune_bench.results.captions import caption, label
from mtlprune_bench.results.comparisons import Comparison, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mtlprune_bench.data.formats import Array

    Numbers = Sequence[float] | Array

ENDINGS = (".pdf", ".svg", ".png")
DPI = 200
ACROSS, WIDTH, HEIGHT = 3, 3.4, 2.7
"""How many panels stand side by side at most, and the size of each in inches."""
LETTER = 0.06
"""The width of a letter of the captions in inches, about."""

SYMBOL = 9
"""The letters that an entry of a legend has room for beside its words."""
LINE = 0.15
"""The height of a line of captions in inches, about."""

COLOURS = ("#332288", "#117733", "#882255", "#44AA99", "#CC6677", "#88CCEE", "#AA4499", "#999933")
"""Tol's muted colours, without those that are too pale for a line: https://personal.sron.nl/~pault/."""
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*", "<", ">", "p", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
SALT = 12765
"""Chosen so that built-in methods differ as lines in grey and as markers in colour; a test holds that."""

CHOICES = 2 * len(MARKERS) * len(DASHES)

INK, PALE, LOUD = "#000000", "#6b6b6b", "#9b2226"
FRONT = "#b8b8b8"

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
    "pdf.fonttype": 42,  # letters as letters: some publishers refuse outlines
    "svg.hashsalt": "mtlbench",
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn: its colour, its marker, whether that is hollow, and the dashes of its line."""

    colour: str
    marker: str
    hollow: bool
    dash: Any

    @property
    def seen(self) -> tuple[str, str, bool]:
        """Return what is seen of it where there is no line."""
        return self.colour, self.marker, self.hollow

    def line(self) -> dict[str, Any]:
        """Return it as arguments of `Axes.plot`."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markerfacecolor": "white" if self.hollow else self.colour,
            "linestyle": self.dash,
        }


def look_of(method: str, settings: str = "", choice: int = 0) -> Look:
    """Return how a method with these settings is drawn, always and everywhere the same.

    Its colour is that of the method; marker and dashes, by which it is known in grey, depend on its settings too.
    Each `choice` is another marker and dash.
    """
    shape = _number(f"{method} {settings} {choice or ''}".strip())
    shape, marker = divmod(shape, len(MARKERS))
    shape, dash = divmod(shape, len(DASHES))
    return Look(COLOURS[_number(method) % len(COLOURS)], MARKERS[marker], bool(shape % 2), DASHES[dash])


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{SALT} {text}".encode()).digest()[:6], "big")


def is_dense(line: Line) -> bool:
    """Return whether a line is of networks that keep all weights, whatever sparsity others were asked for."""
    return line.sparsity == 0


def looks(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Return, by label, how the lines of one figure are drawn, as arguments of `Axes.plot`.

    Methods as registered always look the same; where those with other settings would look like another line of
    the figure, they look otherwise. Dense ones are black, without markers.
    """
    found: dict[str, dict[str, Any]] = {}
    taken = set[tuple[str, str, bool]]()
    for line in sorted(lines, key=lambda line: (bool(line.settings), label(line))):
        if label(line) in found:
            continue
        chosen = look_of(line.method, line.settings)
        if is_dense(line):
            found[label(line)] = {**chosen.line(), "color": INK, "marker": ""}
            continue
        if line.settings:
            choices = (look_of(line.method, line.settings, choice) for choice in range(CHOICES))
            chosen = next((each for each in choices if each.seen not in taken), chosen)
        taken.add(chosen.seen)
        found[label(line)] = chosen.line()
    return found


def panels(count: int, text: str, stand_in: bool) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels under `text`, which is loud for a stand-in."""
    across = min(count, ACROSS)
    rows = math.ceil(count / across)
    figure = titled(max(WIDTH * across, 1.6 * WIDTH), HEIGHT * rows, text, stand_in)
    axes = figure.subplots(rows, across, squeeze=False).flatten().tolist()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def titled(width: float, height: float, text: str, stand_in: bool) -> Figure:
    """Return an empty figure of a size in inches, `text` on top not counted."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(text, int(width / LETTER))
    figure = Figure(figsize=(width, height + LINE * (len(lines) + 1)), layout="constrained")
    weight = {"color": LOUD, "fontweight": "bold"} if stand_in else {"color": PALE}
    figure.suptitle("\n".join(lines), fontsize=7.5, **weight)
    return figure


def setting_of(comparison: Comparison) -> tuple[str, bool]:
    """Return what the lines of `comparison` have in common, in words, and whether they are of a stand-in."""
    finetune = ", or ".join(sorted({line.finetune for line in comparison.lines if line.finetune}))
    text = caption(comparison) + (f"; fine-tuning: {finetune}" if finetune else "")
    return text, bool(comparison.setting["stand_in"])


def names_of(lines: Sequence[Line]) -> dict[str, str]:
    """Return what lines are called in a figure, by label: without fine-tuning, where that tells them apart."""
    short = {label(line): label(replace(line, finetune="")) for line in lines}
    twice = Counter(short.values())
    return {name: text if twice[text] == 1 else name for name, text in short.items()}


def legend(figure: Figure, axes: Sequence[Axes], least: int = 1) -> None:
    """Put one legend of all panels below them, unless it has fewer than `least` entries."""
    entries: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if len(entries) < least:
        return
    across = _columns([len(text) for text in entries], int(figure.get_figwidth() / LETTER))
    figure.set_figheight(figure.get_figheight() + LINE * (math.ceil(len(entries) / across) + 1))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=across, fontsize=7)


def _columns(lengths: Sequence[int], room: int) -> int:
    """Return how many columns of entries so many letters long, filled one after the other, there is room for."""
    for across in range(len(lengths), 1, -1):
        rows = math.ceil(len(lengths) / across)
        columns = [lengths[first : first + rows] for first in range(0, len(lengths), rows)]
        if sum(max(column) + SYMBOL for column in columns) <= room:
            return len(columns)
    return 1


def band(axis: Axes, places: Numbers, low: Numbers, high: Numbers, colour: str) -> None:
    """Shade what lies between two lines; where either is nan, nothing."""
    axis.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)


def check_ending(path: Path) -> None:
    """Raise UsageError where the end of a name does not say which kind of picture it is."""
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"{path} does not end in {', '.join(ENDINGS)}; the end of its name says what to write.")


def write(figures: Sequence[Figure], path: Path) -> list[Path]:
    """Write figures to `path`, several to numbered files beside it; the same figures give the same bytes.

    Raises UsageError for a name with another ending, and StoreError.
    """
    import matplotlib

    check_ending(path)
    kind = path.suffix.lower().removeprefix(".")
    undated: Mapping[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    options = {"format": kind, "dpi": DPI, "metadata": undated[kind]}
    paths = [path]
    if len(figures) > 1:
        paths = [path.with_stem(f"{path.stem}-{number}") for number in range(1, len(figures) + 1)]
    for figure, place in zip(figures, paths, strict=True):
        with matplotlib.rc_context(STYLE):
            write_atomic(place, partial(figure.savefig, **options))
    return paths
