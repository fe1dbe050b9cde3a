"""Cityscapes as MTAN ships it, in two archives of numbered NumPy files: of 256 x 512 and of 128 x 256 pixels.

{train,val}/{image,depth,label_2,label_7,label_19}/0.npy   the larger one
{train,val}/{image,depth,label}/0.npy                      the smaller one, with 7 classes

The files are those of `arrays`; "val", the official validation set, is the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from mtlprune_bench import Entry, Index, Labels, Layout, Place, Sample, numbered

from .arrays import Array, classes_of, columns, maps_of, read_image, write_sample
from .disparity import UNIT

FOLDERS = {"train": "train", "test": "val"}
"""By split, the folder that holds its files."""

LARGE = {"image": ("image",), "segmentation": ("label_7", "label_19"), "depth": ("depth",)}
SMALL = {**LARGE, "segmentation": ("label",)}
"""By column, the folders of its files."""


def index(kinds: Mapping[str, tuple[str, ...]], root: Path, tasks: tuple[str, ...]) -> Index:
    """Return the images of both folders, by number. Raises DataError where a folder cannot be listed."""
    train, test = (_entries(kinds, root / FOLDERS[split], tasks) for split in ("train", "test"))
    return Index(train=train, test=test)


def _entries(kinds: Mapping[str, tuple[str, ...]], folder: Path, tasks: tuple[str, ...]) -> tuple[Entry, ...]:
    return tuple(
        {
            column: tuple(Place(folder / kind / f"{name}.npy") for kind in kinds[column])
            for column in ("image", *tasks)
        }
        for name in numbered(folder / "image", ".npy")
    )


def write(
    maps: Callable[[Array], Mapping[str, Array]], root: Path, splits: Mapping[str, Sequence[Sample]]
) -> None:
    """Write samples, their classes as `maps` makes files of them."""
    for split, samples in splits.items():
        for number, sample in enumerate(samples):
            write_sample(root / FOLDERS[split], number, sample, maps(classes_of(sample)))


def small_maps(seven: Array) -> dict[str, Array]:
    """Return the one map, by folder, of 7 classes."""
    return {"label": seven}


def signs(kinds: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the folders by which an archive is recognised."""
    return tuple(f"{folder}/{kind}" for folder in FOLDERS.values() for names in kinds.values() for kind in names)


MTAN = Layout(
    name="mtan",
    description="as MTAN ships it at 256 x 512: NumPy files in train and val, classes in label_7 and label_19",
    source="https://www.dropbox.com/s/q2333k4eyrnezbh/cityscapes.zip, 2.42 GB (github.com/lorenmt/mtan)",
    signs=signs(LARGE),
    index=partial(index, LARGE),
    image=read_image,
    columns=columns((7, 19)),
    size=(256, 512),
    write=partial(write, maps_of),
    writes=(Labels("segmentation", classes=19), Labels("depth", unit=UNIT)),
)
MTAN_SMALL = Layout(
    name="mtan-small",
    description="as MTAN ships it at 128 x 256: NumPy files in train and val, 7 classes in label",
    source="https://www.dropbox.com/s/lg2ktu7o8hzwf99/cityscapes2.zip, 651 MB (github.com/lorenmt/mtan)",
    signs=signs(SMALL),
    index=partial(index, SMALL),
    image=read_image,
    columns=columns((7,)),
    size=(128, 256),
    write=partial(write, small_maps),
    writes=(Labels("segmentation", classes=7), Labels("depth", unit=UNIT)),
)
