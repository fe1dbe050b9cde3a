"""Reports: what was read of a dataset's files, and what is wrong with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtlprune_bench.adapters import Dataset
from mtlprune_bench.data.locate import Found
from mtlprune_bench.tasks import Labels


@dataclass(frozen=True)
class Problem:
    """A file or folder with which something is wrong, and a sentence that names both."""

    path: Path
    text: str


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What was read of one column of one split.

    `files` and `bytes` are those that hold one image each, `shared` the bytes of files that hold many.
    `shapes` and `types` count the arrays as they are read. `valid` of `pixels` have a label; `low` to `high`
    is the range of those labels, in their units (of all values in [0, 255] for images), `classes` the pixels of
    each class.
    """

    images: int = 0
    files: int = 0
    bytes: int = 0
    shared: Mapping[Path, int] = field(default_factory=dict)
    shapes: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    pixels: int = 0
    valid: int = 0
    low: float = math.inf
    high: float = -math.inf
    classes: Counter[int] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            images=self.images + other.images,
            files=self.files + other.files,
            bytes=self.bytes + other.bytes,
            shared={**self.shared, **other.shared},
            shapes=self.shapes + other.shapes,
            types=self.types + other.types,
            pixels=self.pixels + other.pixels,
            valid=self.valid + other.valid,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            classes=self.classes + other.classes,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the tally as a dictionary that JSON can hold; null for what there is none of."""
        seen = self.low <= self.high
        return {
            "images": self.images,
            "files": self.files + len(self.shared),
            "bytes": self.bytes + sum(self.shared.values()),
            "shapes": dict(sorted(self.shapes.items())),
            "types": dict(sorted(self.types.items())),
            "low": self.low if seen else None,
            "high": self.high if seen else None,
            "valid": self.valid / self.pixels if self.pixels else None,
            "pixels_by_class": {str(number): pixels for number, pixels in sorted(self.classes.items())},
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a verification has found.

    `listed` is the number of images by split, `tallies` are by split and column. `problems` are what stops a
    run or falsifies it, `warnings` what may be meant so.
    """

    dataset: Dataset
    found: Found
    listed: Mapping[str, int]
    tallies: Mapping[str, Mapping[str, Tally]]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    note: str = ""

    def adding(self, problems: Iterable[Problem]) -> Report:
        """Return the report with further problems."""
        return replace(self, problems=(*self.problems, *problems))

    def as_json(self) -> dict[str, Any]:
        """Return the report as a dictionary that JSON can hold."""
        return {
            "dataset": self.dataset.name,
            "layout": self.found.layout.name,
            "root": str(self.found.root),
            "note": self.note,
            "listed": dict(self.listed),
            "read": {
                split: {column: tally.as_json() for column, tally in columns.items()}
                for split, columns in self.tallies.items()
            },
            "problems": [{"path": str(problem.path), "text": problem.text} for problem in self.problems],
            "warnings": [{"path": str(problem.path), "text": problem.text} for problem in self.warnings],
        }


def report_table(report: Report) -> tuple[str, list[list[str]], list[str]]:
    """Return the title, rows and headings of a table of what was read, by split and column."""
    labels = {asked.task: asked for asked in report.dataset.labels}
    rows = [
        [split, column, *_cells(tally, labels.get(column))]
        for split, columns in report.tallies.items()
        for column, tally in columns.items()
    ]
    headings = ["split", "column", "images", "files", "MB", "read as", "values", "valid %", "classes"]
    title = f"{report.dataset.name} in {report.found.root}, layout {report.found.layout.name}"
    return f"{title}; {report.note}" if report.note else title, rows, headings


def _cells(tally: Tally, labels: Labels | None) -> list[str]:
    """Return the texts of a line behind split and column; `labels` are None for images."""
    shapes = [shape for shape, _ in tally.shapes.most_common(2)]
    shapes += [f"{len(tally.shapes) - 2} other shapes"] if len(tally.shapes) > 2 else []
    unit = f" {labels.unit}" if labels and labels.unit else ""
    return [
        str(tally.images),
        str(tally.files + len(tally.shared)),
        f"{(tally.bytes + sum(tally.shared.values())) / 1e6:.1f}",
        f"{', '.join(sorted(tally.types))} {' or '.join(shapes)}".strip(),
        f"{tally.low:.4g} to {tally.high:.4g}{unit}" if tally.low <= tally.high else "",
        f"{100 * tally.valid / tally.pixels:.1f}" if tally.pixels else "",
        f"{len(tally.classes)} of {labels.classes}" if labels and labels.classes else "",
    ]
