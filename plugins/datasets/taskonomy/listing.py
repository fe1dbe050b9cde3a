"""Which views a folder of Taskonomy holds: those that taskonomy.json lists, or all of the tiny split's buildings.

A layout is a pattern: where the folder of one domain (one kind of file) of one building lies.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mtlprune_bench import DataError, Entry, Index, Place, read_index, read_npy

from .columns import CLASS_WEIGHTS

INDEX = "taskonomy.json"
WEIGHTS = "semseg_prior_factor.npy"
# data/assets/splits_taskonomy.zip of github.com/StanfordVL/taskonomy.
TINY = {
    "train": (
        *("hanson", "merom", "klickitat", "onaga", "leonardo", "marstons", "newfields", "pinesdale", "lakeville"),
        *("cosmos", "benevolence", "pomaria", "tolstoy", "shelbyville", "allensville", "wainscott", "beechwood"),
        *("coffeen", "stockman", "hiteman", "woodbine", "lindenwood", "forkland", "mifflinburg", "ranchester"),
    ),
    "validation": ("wiconisco", "corozal", "collierville", "markleeville", "darden"),
    "test": ("ihlen", "muleshoe", "uvalda", "noxapater", "mcdade"),
}
"""The buildings of Tiny-Taskonomy by split."""
KEYS = {"train": "train", "validation": "val", "test": "test"}
"""What the index, and the folders of a layout that has one for each split, call the splits."""
DOMAINS = {
    "image": ("rgb",),
    "segmentation": ("segment_semantic", "segmentsemantic"),
    "normals": ("normal",),
    "depth": ("depth_zbuffer", "depth"),
    "keypoints": ("keypoints2d", "keypoint2d"),
    "edges": ("edge_texture", "edge2d"),
}
"""The folder's names of each column, the usual one first, in the order of the index."""
SUFFIXES = {"segmentation": "segmentsemantic"}
"""What the names of a column's files end in where that is not the usual name of its folder."""
COLUMN_OF = {domain: column for column, domains in DOMAINS.items() for domain in domains}
FILE = re.compile(r"(point_(\d+)_view_(\d+))_domain_(\w+)\.png")
LISTED = re.compile(rf"([\w-]+)/(\w+)/{FILE.pattern}")


@dataclass(frozen=True)
class Folder:
    """The files of one domain of one building: their folder, and what their names end in."""

    name: str
    suffix: str

    def file(self, view: str) -> str:
        """Return the path of the file of `view`, such as "point_3_view_0"."""
        return f"{self.name}/{view}_domain_{self.suffix}.png"


Find = Callable[[str, str], Folder]
"""Returns the folder of a building and a column, relative to the root."""


@dataclass(frozen=True, slots=True, eq=False)
class View(Mapping[str, tuple[Place, ...]]):
    """One image of a listing; its paths are put together when asked for, as there are hundreds of thousands."""

    root: Path
    folders: Mapping[str, Folder]
    name: str

    def __getitem__(self, column: str) -> tuple[Place, ...]:
        return (Place(self.root / self.folders[column].file(self.name)),)

    def __iter__(self) -> Iterator[str]:
        return iter(self.folders)

    def __len__(self) -> int:
        return len(self.folders)


def index(pattern: str, root: Path, tasks: tuple[str, ...]) -> Index:
    """Return the views in `root`, whose folders follow `pattern`. Raises DataError where the index is damaged."""
    find = functools.cache(partial(_find, root, pattern))
    if "segmentation" in tasks:
        check_weights(root / WEIGHTS)
    if (root / INDEX).is_file():
        return read_index(root / INDEX, tuple(DOMAINS), tasks, KEYS, partial(renamed, find))
    return _listed(find, pattern, root, tasks)


def _find(root: Path, pattern: str, building: str, column: str) -> Folder:
    """Return the folder of a column of a building; where there is none, the one that should be there."""
    names = [
        pattern.format(split=split, building=building, domain=domain)
        for domain in DOMAINS[column]
        for split in KEYS.values()
    ]
    name = next((name for name in names if (root / name).is_dir()), names[0])
    matches = (FILE.fullmatch(file) for file in _files(root / name))
    suffix = next((match[4] for match in matches if match), SUFFIXES.get(column, DOMAINS[column][0]))
    return Folder(name, suffix)


def _files(folder: Path) -> Iterator[str]:
    """Yield the names in a folder, none where it is not there, without looking at the files."""
    try:
        with os.scandir(folder) as files:
            yield from (file.name for file in files)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"Cannot look into {folder}: {error.strerror}. Make it readable.") from error


def renamed(find: Find, path: str) -> str:
    """Return where a file lies that is listed as <building>/<domain>/<file>; other paths stay as they are."""
    match = LISTED.fullmatch(path)
    if match is None or match[2] not in COLUMN_OF:
        return path
    return find(match[1], COLUMN_OF[match[2]]).file(match[3])


def _listed(find: Find, pattern: str, root: Path, tasks: tuple[str, ...]) -> Index:
    """Return the views of the tiny split's buildings. Raises DataError where there is none of them."""
    present = _buildings(pattern, root)
    known = {building for buildings in TINY.values() for building in buildings}
    if not present & known:
        raise DataError(
            f"{root} has none of the {len(known)} buildings of Tiny-Taskonomy, such as {TINY['train'][0]}, but "
            f"{', '.join(sorted(present)[:3])}. Fetch those, or list the images of these in {INDEX}."
        )
    entries: dict[str, tuple[Entry, ...]] = {
        split: tuple(view for name in buildings if name in present for view in _views(find, root, name, tasks))
        for split, buildings in TINY.items()
    }
    others = len(present - known)
    note = f"buildings outside Tiny-Taskonomy left out: {others}" if others else ""
    return Index(train=entries["train"], validation=entries["validation"], test=entries["test"], note=note)


def _buildings(pattern: str, root: Path) -> set[str]:
    """Return the names of the buildings that have images."""
    names = set()
    for split in KEYS.values():
        above, _, below = pattern.format(split=split, building="*", domain="rgb").partition("*")
        names |= {name for name in _files(root / above) if (root / f"{above}{name}{below}").is_dir()}
    return names


def _views(find: Find, root: Path, building: str, tasks: tuple[str, ...]) -> Iterator[View]:
    """Yield the views of a building that have an image, by their numbers."""
    folders = {column: find(building, column) for column in ("image", *tasks)}
    matches = [match for name in _files(root / folders["image"].name) if (match := FILE.fullmatch(name))]
    matches.sort(key=lambda match: (int(match[2]), int(match[3])))
    return (View(root, folders, match[1]) for match in matches)


def check_weights(path: Path) -> None:
    """Warn where the class weights in a file are not `CLASS_WEIGHTS`. Raises DataError where it is damaged."""
    if not path.is_file():
        return
    weights = read_npy(path, 1)
    if weights.shape != (len(CLASS_WEIGHTS),) or not np.allclose(weights, CLASS_WEIGHTS, rtol=0, atol=1e-3):
        warnings.warn(
            f"{path} differs from the class weights of AdaShare's release, which are used instead.", stacklevel=2
        )
