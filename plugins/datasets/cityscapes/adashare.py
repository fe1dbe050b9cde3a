"""Cityscapes as AdaShare and DiSparse ship it: an index in JSON beside NumPy files of 256 x 512 pixels.

cityscape.json   {"train": [[image, disparity, 2 classes, 7 classes, 19 classes], ...], "test": [...]}, with paths
                 relative to it; the files are those of `arrays`, and "test" is the official validation set
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtlprune_bench import Index, Labels, Layout, Sample, read_index, write_text

from .arrays import classes_of, columns, maps_of, read_image, write_sample
from .disparity import UNIT

INDEX = "cityscape.json"
COLUMNS = ("image", "depth", "", "segmentation", "segmentation")
KINDS = ("image", "depth", "label_2", "label_7", "label_19")
FOLDERS = {"train": "train", "test": "val"}
"""By split, the folder that holds its files."""


def index(root: Path, tasks: tuple[str, ...]) -> Index:
    """Return the images that the index lists. Raises DataError where it is damaged."""
    return read_index(root / INDEX, COLUMNS, tasks, {"train": "train", "test": "test"})


def write(root: Path, splits: Mapping[str, Sequence[Sample]]) -> None:
    """Write samples in this layout."""
    listed = {}
    for split, samples in splits.items():
        folder = FOLDERS[split]
        for number, sample in enumerate(samples):
            write_sample(root / folder, number, sample, maps_of(classes_of(sample)))
        listed[split] = [[f"{folder}/{kind}/{number}.npy" for kind in KINDS] for number in range(len(samples))]
    write_text(root / INDEX, json.dumps(listed, indent=1) + "\n")


ADASHARE = Layout(
    name="adashare",
    description="as AdaShare and DiSparse ship it: NumPy files listed in cityscape.json",
    source="https://drive.google.com/file/d/1WrVMA_UZpoj7voajf60yIVaS_Ggl0jrH (github.com/sunxm2357/AdaShare)",
    signs=(INDEX,),
    index=index,
    image=read_image,
    columns=columns((7, 19)),
    size=(256, 512),
    write=write,
    writes=(Labels("segmentation", classes=19), Labels("depth", unit=UNIT)),
)
