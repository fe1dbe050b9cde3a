"""NYU-v2 for tests: generated photographs, and the data set opened from a folder in any layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from mtlprune_bench import STANDARD, Labels, Sample
from mtlprune_bench.data.locate import locate
from mtlprune_bench.data.photos import open_photos
from mtlprune_bench.host.registry import load_registry

SEGMENTATION, NORMALS, DEPTH = Labels("segmentation", classes=40), Labels("normals"), Labels("depth", unit="m")
THIRTEEN = Labels("segmentation", classes=13)
ALL = (SEGMENTATION, NORMALS, DEPTH)
ALL_THIRTEEN = (THIRTEEN, NORMALS, DEPTH)
HEIGHT, WIDTH = 6, 8
DATASET = load_registry().get("datasets", "nyuv2-3task")
FILES = DATASET.files
LAYOUTS = {layout.name: layout for layout in FILES.layouts}


def opened(root, labels=ALL, protocol=STANDARD, layout=None):
    """Return the splits in `root`."""
    found = locate(FILES, root, layout)
    assert found is not None
    return open_photos(replace(DATASET, labels=labels), found.layout, found.root, protocol)


def photograph(seed, classes=40, height=HEIGHT, width=WIDTH):
    """Return a random photograph in canonical form, with pixels that have no label; no axis is like another."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (height, width))
    known, facing, measured = (rng.random((3, height, width)) > 0.2).copy()
    vectors = rng.normal(size=(3, height, width))
    vectors /= np.linalg.norm(vectors, axis=0)
    metres = rng.uniform(0.5, 9, (1, height, width))
    targets = {
        "segmentation": np.where(known, labels, 255),
        "normals": (vectors * facing).astype(np.float32),
        "depth": (metres * measured).astype(np.float32),
    }
    masks = {"segmentation": known, "normals": facing, "depth": measured}
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    return Sample.of(
        image,
        {task: torch.from_numpy(target) for task, target in targets.items()},
        {task: torch.from_numpy(mask) for task, mask in masks.items()},
    )


def photographs(classes=40, train=2, test=1):
    """Return random photographs by split."""
    made = [photograph(seed, classes) for seed in range(train + test)]
    return {"train": made[:train], "test": made[train:]}


def write(root, layout, samples=None):
    """Write photographs in a layout, and return the folder."""
    classes = LAYOUTS[layout].writes[0].classes
    LAYOUTS[layout].write(root, samples or photographs(classes))
    return root
