"""NYU-v2: 1449 photographs of rooms with classes, surface normals and depth."""

from __future__ import annotations

from dataclasses import replace

from mtlprune_bench import Dataset, Files, Labels, Recipe, Register, hookimpl

from .adashare import ADASHARE
from .mtan import MTAN
from .official import OFFICIAL

FILES = Files(
    title="NYU-v2",
    folders=("nyuv2", "nyudepthv2", "nyu"),
    layouts=(ADASHARE, MTAN, OFFICIAL),
    sizes={"train": 795, "test": 654},
    licence="for research; no licence is stated",
)
SOURCES = {
    "model": "DiSparse, section 4.1",
    "train": "DiSparse, section 4.3; crop, augmentation, weight decay and evaluation: its code",
    "finetune": "DiSparse, section 4.4; the rest as in train",
}
TRAIN = Recipe(
    steps=20_000,
    crop=321,
    lr=1e-3,
    lr_decay=0.5,
    lr_decay_every=4000,
)
# Its steps are fewer than those to the first decay.
FINETUNE = replace(TRAIN, steps=1000, lr=1e-5)
# Of the released code for the first two tasks, of AdaShare's for three.
LOSS_WEIGHTS = {"segmentation": 1.0, "normals": 20.0, "depth": 3.0}


def nyuv2(classes: int, depth: bool) -> Dataset:
    """Return the data set with 40 or 13 classes, normals, and depth if asked for."""
    labels = [Labels("segmentation", classes=classes), Labels("normals")]
    tasks = f"{classes} classes, surface normals and depth" if depth else f"{classes} classes and surface normals"
    if depth:
        labels.append(Labels("depth", unit="m"))
    return Dataset(
        name="nyuv2" + ("" if classes == 40 else f"-{classes}") + ("-3task" if depth else ""),
        description=f"Rooms (NYU-v2): {tasks}.",
        labels=tuple(labels),
        loss_weights={label.task: LOSS_WEIGHTS[label.task] for label in labels},
        model="deeplab-resnet34",
        train=TRAIN,
        finetune=FINETUNE,
        files=FILES,
        stand_in="scenes",
        sources=SOURCES,
    )


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the data set: with 40 and 13 classes, with two tasks and three."""
    for classes in (40, 13):
        for depth in (False, True):
            register(nyuv2(classes, depth))
