"""The four ways in which the files of Taskonomy lie in a folder; they differ in where a building's folders are.

hanson/rgb/point_3_view_0_domain_rgb.png              RGB uint8, 512 x 512
hanson/segment_semantic/..._segmentsemantic.png       uint8, 0 uncertain, 1 background, 2 to 17 objects
hanson/normal/..._normal.png                          RGB uint8, round((n + 1) * 127.5): x right, y down, z forward
hanson/depth_zbuffer/..._depth_zbuffer.png            uint16, metres * 512, 65535 where there is none
hanson/keypoints2d/..._keypoints2d.png                uint16, strength * 65535
hanson/edge_texture/..._edge_texture.png              uint16, strength * 65535
taskonomy.json             {"train": [[the six paths above], ...], "test": [...]}, perhaps with "val"
semseg_prior_factor.npy    float64 [17], the weights of the classes, background first
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlprune_bench import Labels, Layout, Sample, UsageError, write_npy, write_png, write_text

from .columns import CLASS_WEIGHTS, CLASSES, COLUMNS, ENCODERS, SIZE, STORED, read_image
from .listing import DOMAINS, INDEX, KEYS, SUFFIXES, TINY, WEIGHTS, Folder, index

Array = NDArray[Any]


def write(pattern: str, root: Path, splits: Mapping[str, Sequence[Sample]]) -> None:
    """Write samples of 256 x 256 pixels as 512 x 512, those of a split as views of its first building.

    Raises UsageError for another size.
    """
    listed: dict[str, list[list[str]]] = {key: [] for key in KEYS.values()}
    for split, samples in splits.items():
        building = TINY[split][0]
        for number, sample in enumerate(samples):
            if sample.image.shape[-2:] != (SIZE, SIZE):
                raise UsageError(f"Taskonomy's images have {SIZE} x {SIZE} pixels; leave the size out.")
            view, paths = f"point_{number}_view_0", []
            for column, (domain, *_) in DOMAINS.items():
                suffix = SUFFIXES.get(column, domain)
                folder = pattern.format(split=KEYS[split], building=building, domain=domain)
                pixels = _pixels(sample, column).repeat(STORED // SIZE, -2).repeat(STORED // SIZE, -1)
                write_png(root / Folder(folder, suffix).file(view), pixels)
                paths.append(Folder(f"{building}/{domain}", suffix).file(view))
            listed[KEYS[split]].append(paths)
    write_npy(root / WEIGHTS, np.array(CLASS_WEIGHTS))
    write_text(root / INDEX, json.dumps(listed, indent=1) + "\n")


def _pixels(sample: Sample, column: str) -> Array:
    """Return what the file of a column holds, [..., 256, 256]."""
    if column == "image":
        return sample.image.numpy()
    return ENCODERS[column](sample.targets[column].numpy(), sample.masks[column].numpy())


def _layout(
    name: str, description: str, source: str, pattern: str, splits: tuple[str, ...] = ("train",)
) -> Layout:
    """Return the layout whose folders follow `pattern`; it is recognised by the images of `splits`."""
    views = pattern.replace("{building}", "*") + "/point_*.png"
    image, *others = (names[0] for names in DOMAINS.values())
    return Layout(
        name=name,
        description=description,
        source=source,
        signs=tuple(views.format(split=split, domain=image) for split in splits),
        hints=(INDEX, *(views.format(split="train", domain=domain) for domain in others)),
        index=partial(index, pattern),
        image=read_image,
        columns=COLUMNS,
        size=(SIZE, SIZE),
        write=partial(write, pattern),
        writes=(
            Labels("segmentation", classes=CLASSES),
            Labels("normals"),
            Labels("depth", unit="m"),
            Labels("keypoints"),
            Labels("edges"),
        ),
    )


LAYOUTS = (
    _layout(
        "building-first",
        "as the buildings' archives unpack: <building>/<domain>/",
        "https://github.com/StanfordVL/taskonomy/tree/master/data",
        "{building}/{domain}",
    ),
    _layout(
        "adapmtl",
        "as AdapMTL and AutoMTL have it: {train,test}/<building>/<domain>/",
        "the files of building-first, in other folders (github.com/MitchellX/AdapMTL)",
        "{split}/{building}/{domain}",
        ("train", "test"),
    ),
    _layout(
        "omnitools",
        "as the Omnidata tools download it, and DiSparse reads it: <domain>/taskonomy/<building>/",
        "https://docs.omnidata.vision: omnitools.download rgb segment_semantic normal depth_zbuffer keypoints2d "
        "edge_texture --components taskonomy --subset tiny",
        "{domain}/taskonomy/{building}",
    ),
    _layout(
        "multimae",
        "as MultiMAE has it: <domain>/<building>/",
        "the files of omnitools, in other folders (github.com/EPFL-VILAB/MultiMAE)",
        "{domain}/{building}",
    ),
)
