"""The generated scenes on disk: made once, memory-mapped, checked when opened, made again where damaged."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from mtlprune_bench import DataError, checksum, derive, locked, set_aside, write_atomic, write_text

from .labels import edges, keypoints
from .render import render
from .world import draw_scene

VERSION = 1
"""Raised whenever a scene would look different, so that old files are left alone."""
SPLITS = {"train": 0, "validation": 1_000_000, "test": 2_000_000}
"""The index of each split's first scene."""
MANIFEST = "manifest.json"
ARRAYS = ("image", "segmentation", "normals", "depth", "keypoints", "edges")
Scene = dict[str, NDArray[Any]]
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which scenes are made: their seed, size in pixels and number in each split."""

    seed: int = 0
    height: int = 96
    width: int = 128
    train: int = 240
    validation: int = 40
    test: int = 80

    @property
    def name(self) -> str:
        """Return what identifies the scenes, and names their folder."""
        counts = f"{self.train}+{self.validation}+{self.test}"
        return f"scenes-v{VERSION}-{self.height}x{self.width}-{counts}-seed{self.seed}"

    def indices(self) -> list[int]:
        """Return the index of every scene: training, validation, test."""
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        return [first + number for split, first in SPLITS.items() for number in range(counts[split])]


@dataclass(frozen=True)
class Stored:
    """The scenes of a plan: arrays [N, ...] by name, in the order of `Plan.indices`, mapped from their files.

    `mean` and `std` are of the training images' RGB in [0, 1].
    """

    arrays: dict[str, NDArray[Any]]
    mean: Triple
    std: Triple


class Damaged(Exception):
    """A folder does not hold what its manifest says."""


def make_scene(seed: int, index: int, height: int, width: int) -> Scene:
    """Return the arrays of scene `index`, channels first; a pure function of the arguments.

    Image uint8 [3, H, W], segmentation uint8 [H, W] (255: no class), normals float32 [3, H, W] and depth
    float32 [1, H, W] in metres (both 0 where there is no geometry), keypoints and edges float32 [1, H, W].
    """
    rng = np.random.default_rng(derive(seed, "scenes", index))
    picture = render(draw_scene(rng), height, width, rng)
    return {
        "image": picture.image.transpose(2, 0, 1),
        "segmentation": picture.labels,
        "normals": picture.normals.transpose(2, 0, 1),
        "depth": picture.depth[None],
        "keypoints": keypoints(picture.image)[None],
        "edges": edges(picture.image)[None],
    }


def load(plan: Plan, cache: Path) -> Stored:
    """Return the scenes of `plan`, from their folder in `cache`; they are made where they are not there.

    A damaged folder is moved aside with a RuntimeWarning. Raises DataError or StoreError where the cache
    cannot be used.
    """
    folder = cache / plan.name
    try:
        return read(plan, folder)
    except (Damaged, FileNotFoundError):
        pass  # Another process may be making them: only the holder of the lock decides.
    with locked(cache / f"{plan.name}.lock", _tell_wait):
        try:
            return read(plan, folder)
        except FileNotFoundError:
            pass
        except Damaged as damage:
            _move_aside(folder, damage)
        make(plan, folder)
        return read(plan, folder)


def read(plan: Plan, folder: Path) -> Stored:
    """Return the scenes in `folder`. Raises FileNotFoundError without it, Damaged where it is bad."""
    if not folder.exists():
        raise FileNotFoundError(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["plan"] != asdict(plan) or manifest["version"] != VERSION:
            raise Damaged(f"{MANIFEST} is of other scenes")
        arrays = {name: _checked(folder / f"{name}.npy", manifest["arrays"][name]) for name in ARRAYS}
        mean, std = (_triple(manifest[name]) for name in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    return Stored(arrays, mean, std)


def _checked(path: Path, entry: dict[str, Any]) -> NDArray[Any]:
    """Return the array in a file, mapped read-only. Raises Damaged where it is not what `entry` says."""
    if checksum(path) != entry["sha256"]:
        raise Damaged(f"{path.name} has another checksum than when it was made")
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if list(array.shape) != entry["shape"]:
        raise Damaged(f"{path.name} has another shape than when it was made")
    return array


def _triple(values: Any) -> Triple:
    red, green, blue = map(float, values)
    return red, green, blue


def _move_aside(folder: Path, damage: Damaged) -> None:
    """Rename a damaged folder and say so."""
    try:
        moved = set_aside(folder)
    except OSError as error:
        raise DataError(f"{folder} is damaged ({damage}) and cannot be moved: {error}. Remove it.") from error
    warnings.warn(
        f"The generated scenes in {folder} were damaged ({damage}). The folder was moved to {moved.name} and "
        "is made again.",
        RuntimeWarning,
        stacklevel=2,
    )


def make(plan: Plan, folder: Path) -> None:
    """Make the scenes of `plan` in a folder beside `folder`, and rename it when everything is written."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    try:
        arrays = _generate(plan)
        for name, array in arrays.items():
            write_atomic(part / f"{name}.npy", functools.partial(_save, array))
        write_text(part / MANIFEST, json.dumps(_manifest(plan, arrays, part), indent=2) + "\n")
        part.replace(folder)
    except OSError as error:
        raise DataError(f"Cannot write {folder}: {error}. Choose another cache folder.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _generate(plan: Plan) -> dict[str, NDArray[Any]]:
    """Return every scene's arrays, stacked [N, ...]."""
    indices = plan.indices()
    stacked: dict[str, NDArray[Any]] = {}
    for row, index in enumerate(_progress(indices)):
        for name, array in make_scene(plan.seed, index, plan.height, plan.width).items():
            if name not in stacked:
                stacked[name] = np.empty((len(indices), *array.shape), dtype=array.dtype)
            stacked[name][row] = array
    return stacked


def _progress(indices: list[int]) -> Iterator[int]:
    """Yield the indices, with a progress bar where standard error is a terminal."""
    yield from track(
        indices,
        "Generating scenes",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _save(array: NDArray[Any], path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _manifest(plan: Plan, arrays: dict[str, NDArray[Any]], folder: Path) -> dict[str, Any]:
    """Return what identifies the files and describes the training images."""
    pixels = arrays["image"][: plan.train] / np.float32(255)
    return {
        "version": VERSION,
        "plan": asdict(plan),
        "arrays": {
            name: {
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "sha256": checksum(folder / f"{name}.npy"),
            }
            for name, array in arrays.items()
        },
        "mean": pixels.mean(axis=(0, 2, 3), dtype=np.float64).tolist(),
        "std": pixels.std(axis=(0, 2, 3), dtype=np.float64).tolist(),
    }


def _tell_wait(owner: str) -> None:
    print(f"Waiting for process {owner}, which is generating the scenes.", file=sys.stderr)
