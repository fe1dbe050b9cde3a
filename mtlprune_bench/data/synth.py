"""Synthesis: generated scenes written as a dataset's own files, to try everything that reads them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlprune_bench.adapters import Dataset, Sample, Samples
from mtlprune_bench.data.layouts import Layout
from mtlprune_bench.data.locate import GENERATED
from mtlprune_bench.errors import DataError, PluginError, StoreError, UsageError


@dataclass
class Drawn(Sequence[Sample]):
    """`length` samples from `first` on, drawn when asked for; `advance(1)` is called after each new one."""

    samples: Samples
    first: int
    length: int
    advance: Callable[[int], None]
    _last: tuple[int, Sample] | None = field(default=None, init=False)
    _furthest: int = field(default=-1, init=False)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        """Return sample `index`. The last one is kept for who asks again, no more: they fill megabytes."""
        if not 0 <= index < self.length:
            raise IndexError(f"There is no image {index} among {self.length}.")
        if self._last is None or self._last[0] != index:
            self._last = index, self.samples[self.first + index]
        if index > self._furthest:
            self.advance(index - self._furthest)
            self._furthest = index
        return self._last[1]


def synthesise(
    layout: Layout,
    generator: Dataset,
    root: Path,
    count: int,
    seed: int,
    size: tuple[int, int] | None,
    advance: Callable[[int], None],
) -> dict[str, int]:
    """Write `count` training images of `generator` and a quarter as many for the test, one at least, in `layout`.

    `size` is their (H, W), by default the layout's; `advance(1)` is called after each. `root` is made; it holds
    all of the files, and one that says that they are generated, or, after a failure, none. Returns the number of
    images by split. Raises DataError where `root` is not empty or the generator lacks labels of the layout,
    StoreError where it cannot be written, and UsageError where `count` is below 1 or the layout has no `size`.
    """
    size = size or layout.size
    if count < 1 or min(size) < 1:
        raise UsageError(f"There is nothing to write: {count} images of {size[0]} x {size[1]} pixels.")
    if generator.generate is None:
        raise PluginError(f"Dataset '{generator.name}' has no generate, so nothing can be synthesised with it.")
    numbers = split_sizes(count)
    samples = generator.generate(layout.writes, size, sum(numbers.values()), seed)
    splits = {
        split: Drawn(samples, first, numbers[split], advance)
        for split, first in (("train", 0), ("test", numbers["train"]))
    }

    def write(folder: Path) -> None:
        layout.write(folder, splits)
        (folder / GENERATED).write_text(f"{generator.name}, seed {seed}, {size[0]} x {size[1]} pixels\n")

    _write(root.resolve(), write)
    return numbers


def split_sizes(count: int) -> dict[str, int]:
    """Return the number of images of each split for `count` training images."""
    return {"train": count, "test": max(1, count // 4)}


def _write(root: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder inside `root`, and move what is in it up when everything is there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        if found := sorted(path.name for path in root.iterdir()):
            raise DataError(f"{root} is not empty, there is {found[0]}. Empty it or choose another folder.")
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=root) as folder:
            write(Path(folder))
            for path in sorted(Path(folder).iterdir()):
                path.replace(root / path.name)
    except OSError as error:
        raise StoreError(
            f"Cannot write {root}: {error.strerror or error}. Free some space or choose another folder."
        ) from error
