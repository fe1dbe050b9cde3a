"""Training samples a second: the released codes' way, this one from files, and from prepared shards.

    python -m benchmarks.speed.loading [--root FOLDER] [--photos 16] [--seconds 5] [--rounds 5]

All three run on one thread, in turns, on the same photographs of 480 x 640 pixels, and make crops of 321
pixels. Without --root the photographs are generated, with files about as large as real ones. Seconds are of
the processor, so that other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.speed.measure import OURS, Case, Sides
from mtlprune_bench.adapters import Dataset, Sample
from mtlprune_bench.data.formats import Array
from mtlprune_bench.data.layouts import Layout
from mtlprune_bench.data.locate import locate
from mtlprune_bench.data.photos import open_photos
from mtlprune_bench.data.prepared import open_prepared, prepare, prepared_folder
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.protocols import STANDARD
from mtlprune_bench.tasks import Objective
from mtlprune_bench.training.batches import Stream

MEAN = np.array((104.00698793, 116.66876762, 122.67891434), dtype=np.float32)
"""Of blue, green and red in [0, 255], as the released codes have it."""
CROP = 321
SIZE = (480, 640)
RELEASED, FILES, PREPARED = "released codes", "files", "prepared"
DATASETS = {"2 tasks": "nyuv2", "3 tasks": "nyuv2-3task"}
"""Segmentation and normals, and depth with them."""


def smooth(rng: np.random.Generator, channels: int, cells: int) -> Array:
    """Return noise in [0, 1] without detail below 1 / `cells` of the height, float32 [channels, H, W]."""
    coarse = rng.random((channels, cells, cells * 4 // 3), dtype=np.float32)
    return np.stack([cv2.resize(plane, SIZE[::-1], interpolation=cv2.INTER_CUBIC) for plane in coarse]).clip(0, 1)


def photograph(rng: np.random.Generator) -> Sample:
    """Return a sample with surfaces, their shades and a camera's noise, whose files are as large as real ones."""
    light = 0.5 * smooth(rng, 3, 4) + 0.3 * smooth(rng, 3, 16) + 0.2 * smooth(rng, 3, 60)
    image = (255 * light + rng.normal(0, 1.2, light.shape)).clip(0, 255).astype(np.uint8)
    classes = (smooth(rng, 40, 6) + 0.05 * smooth(rng, 40, 24)).argmax(0)
    # A direction for each surface, bent a little, and never the zero vector.
    faces = rng.normal(size=(40, 3)).astype(np.float32)[classes].transpose(2, 0, 1)
    normals = faces + 0.3 * (smooth(rng, 3, 24) - 0.5) + rng.normal(0, 0.01, faces.shape)
    normals /= np.sqrt(np.square(normals).sum(0)).clip(min=1e-3)
    depth = 1 + 4 * smooth(rng, 1, 8)
    shown = np.ones(SIZE, dtype=bool)
    shown[:41], shown[472:], shown[:, :24], shown[:, 609:] = False, False, False, False
    everywhere = torch.ones(SIZE, dtype=torch.bool)
    return Sample.of(
        torch.from_numpy(image),
        {
            "segmentation": torch.from_numpy(classes),
            "normals": torch.from_numpy(normals.astype(np.float32)),
            "depth": torch.from_numpy(depth),
        },
        {"segmentation": everywhere, "normals": torch.from_numpy(shown), "depth": everywhere},
    )


class Released:
    """The released codes' loading, written anew, step by step.

    As in the NYU-v2 loader of github.com/sunxm2357/AdaShare, which DiSparse uses too: all four files of a
    photograph are decoded whatever the tasks, by OpenCV and NumPy, and enlarged whole; they are mirrored, stacked,
    padded (the image with 0, classes and normals with 255), cut, and the mean is subtracted, in float64.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        self._entries: list[list[str]] = json.loads((root / "nyu_v2_3task.json").read_text())["train"]
        self._rng = np.random.default_rng(seed)

    def __call__(self, position: int) -> tuple[torch.Tensor, ...]:
        """Return the sample at `position` of the endless stream: image, classes, normals and depth."""
        if position % len(self._entries) == 0:
            self._order = self._rng.permutation(len(self._entries))
        image, classes, normals, depth = self._read(self._entries[self._order[position % len(self._entries)]])
        scale = self._rng.uniform(0.5, 1.5)
        size = (int(image.shape[1] * scale), int(image.shape[0] * scale))
        image = cv2.resize(image, size)
        labels = [cv2.resize(one, size, interpolation=cv2.INTER_NEAREST) for one in (classes, normals, depth)]
        classes, normals, depth = (one if one.ndim == 3 else one[:, :, None] for one in labels)
        codes = np.concatenate((classes, normals), axis=2).astype(np.float32) - 255
        stacked = np.concatenate((image, codes, depth), axis=2)
        cut = self._cut(stacked[:, ::-1] if self._rng.random() < 0.5 else stacked)
        image = cut[:, :, :3].copy() - MEAN
        codes = (cut[:, :, 3:7] + 255).astype(np.uint8)
        arrays = (codes[:, :, :1], codes[:, :, 1:], cut[:, :, 7:].copy())
        planes = (torch.from_numpy(array).permute(2, 0, 1) for array in arrays)
        return (torch.from_numpy(image.transpose(2, 0, 1)).contiguous().float(), *planes)

    def _read(self, entry: list[str]) -> tuple[Array, Array, Array, Array]:
        """Return the arrays of one entry as they are on disk, channels last and blue first."""
        image, classes, normals, depth = (str(self._root / name) for name in entry)
        kinds = {image: cv2.IMREAD_COLOR, classes: cv2.IMREAD_GRAYSCALE, normals: cv2.IMREAD_COLOR}
        pictures = [np.asarray(cv2.imread(path, kind)) for path, kind in kinds.items()]
        return pictures[0], pictures[1], pictures[2], np.load(depth)

    def _cut(self, values: Array) -> Array:
        """Return a random crop, float64 [crop, crop, C], of `values` [H, W, C] padded evenly with 0."""
        height, width, channels = values.shape
        padded = np.zeros((max(height, CROP), max(width, CROP), channels))
        top, left = ((side - had) // 2 for side, had in zip(padded.shape, (height, width), strict=False))
        padded[top : top + height, left : left + width] = values
        row, column = (int(self._rng.integers(side - CROP + 1)) for side in padded.shape[:2])
        return padded[row : row + CROP, column : column + CROP]


def stream(dataset: Dataset, layout: Layout, root: Path) -> Stream:
    """Return the engine's training stream."""
    tasks = load_registry()
    objective = Objective(
        tasks={labels.task: tasks.get("tasks", labels.task) for labels in dataset.labels},
        labels={labels.task: labels for labels in dataset.labels},
        weights=dataset.loss_weights,
        protocol=STANDARD,
    )
    return Stream(open_photos(dataset, layout, root, STANDARD), objective, dataset.train, seed=0)


def rates(ways: Mapping[str, Callable[[int], object]], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Return the samples a second of each way in each round; they take turns of `seconds`."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    positions = dict.fromkeys(ways, 0)
    for _ in range(rounds):
        for name, load in ways.items():
            began, first = time.process_time(), positions[name]
            while time.process_time() - began < seconds:
                load(positions[name])
                positions[name] += 1
            found[name].append((positions[name] - first) / (time.process_time() - began))
    return found


def generated(root: Path, layout: Layout, count: int) -> None:
    """Write `count` generated photographs to train on, and one to test on."""
    rng = np.random.default_rng(0)
    layout.write(root, {"train": [photograph(rng) for _ in range(count)], "test": [photograph(rng)]})


def ways_of(name: str, root: Path, cache: Path) -> dict[str, Callable[[int], object]]:
    """Return what loads the sample at a position, each way, of one dataset; samples are prepared in `cache`."""
    dataset: Dataset = load_registry().get("datasets", DATASETS[name])
    assert dataset.files is not None, "the dataset is of files"
    found = locate(dataset.files, root, "adashare")
    if found is None:
        sys.exit(f"There are no photographs in layout adashare in {root}.")
    folder = prepare(dataset, found, prepared_folder(dataset.files, found, cache), 1, lambda ready: None)
    tasks = tuple(labels.task for labels in dataset.labels)
    layout = open_prepared(found.layout, folder, tasks)
    assert layout is not None, "it was prepared just now"
    return {
        RELEASED: Released(found.root, seed=0),
        FILES: stream(dataset, found.layout, found.root).sample,
        PREPARED: stream(dataset, layout, folder).sample,
    }


def report(name: str, root: Path, cache: Path, seconds: float, rounds: int) -> None:
    """Measure one dataset's loading, and print a row of a markdown table for each way."""
    ways = ways_of(name, root, cache)
    rates(ways, 0.5, 1)
    speeds = {way: statistics.median(values) for way, values in rates(ways, seconds, rounds).items()}
    for way, speed in speeds.items():
        ratio = speed / speeds[RELEASED]
        print(f"| {name} | {way} | {speed:.1f} | {1000 / speed:.2f} | {ratio:.2f} |", flush=True)


def turns(name: str, photos: int, samples: int, device: torch.device) -> Sides:
    """Compare reading so many samples, on one thread, of so many generated photographs."""
    scratch = Path(tempfile.mkdtemp())
    generated(scratch / "nyuv2", adashare(), photos)
    ways = ways_of(name, scratch / "nyuv2", scratch)
    whole = stream_of(ways[FILES]).splits.train[0].image
    read = ways[RELEASED]._read(ways[RELEASED]._entries[0])[0]  # type: ignore[attr-defined]
    same = bool((torch.from_numpy(read[:, :, ::-1].copy()).permute(2, 0, 1) == whole).all())

    def load(way: Callable[[int], object]) -> Callable[[], object]:
        positions = itertools.count()

        def some() -> object:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            cv2.setNumThreads(1)
            first = way(next(positions))
            for _ in range(samples - 1):
                way(next(positions))
            torch.set_num_threads(threads)
            return first

        return some

    def differ(theirs: Any, ours: Any) -> str:
        if isinstance(
            theirs, tuple
        ):  # cut at random in another way, so that only whole photographs can be compared
            return "" if same else "they read different photographs"
        wrong = [task for task in ours.targets if not torch.equal(theirs.masks[task], ours.masks[task])]
        wrong += [] if torch.equal(theirs.images, ours.images) else ["images"]
        return f"samples differ in {', '.join(wrong)}" if wrong else ""

    names = {RELEASED: "released", FILES: "files", PREPARED: OURS}
    return Sides(
        {names[way]: load(function) for way, function in ways.items()},
        differ,
        close=lambda: shutil.rmtree(scratch),
    )


def stream_of(sample: Any) -> Stream:
    """Return the stream that a way reads from."""
    found: Stream = sample.__self__
    return found


def adashare() -> Layout:
    """Return the layout in which the released codes read."""
    dataset: Dataset = load_registry().get("datasets", DATASETS["3 tasks"])
    assert dataset.files is not None, "the dataset is of files"
    return next(one for one in dataset.files.layouts if one.name == "adashare")


def cases() -> list[Case]:
    """Return the case of `python -m benchmarks.speed`; ours reads prepared shards, `files` are ours from PNGs."""
    return [
        Case(
            name="loading",
            size=f"{name}, crop {CROP}",
            prepare=partial(turns, name, 8, 24),
            needs=1e9,
            targets={"released": 10.0},
        )
        for name in DATASETS
    ]


def file_sizes(root: Path) -> str:
    """Return the mean sizes of the files in each folder of `root`, in words."""
    words = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        words += [f"{folder.name} {statistics.mean(sizes) / 1000:.0f} kB"] if sizes else []
    return ", ".join(words)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder with NYU-v2 in layout adashare; default: generated")
    parser.add_argument("--photos", type=int, default=16, help="number of photographs to generate")
    parser.add_argument("--seconds", type=float, default=5, help="length of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="number of turns of each way")
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = asked.root or Path(scratch, "nyuv2")
        if asked.root is None:
            generated(root, adashare(), asked.photos)
        print(f"Mean sizes of files: {file_sizes(root)}.\n")
        print("| tasks | from | samples/s | ms | ratio |\n|---|---|---:|---:|---:|")
        for name in DATASETS:
            report(name, root, Path(scratch), asked.seconds, asked.rounds)


if __name__ == "__main__":
    main()
