"""Cityscapes: street scenes with 19 or 7 classes, and stereo disparity or depth."""

from __future__ import annotations

from dataclasses import replace

from mtlprune_bench import Dataset, Files, Labels, Recipe, Register, hookimpl

from .adashare import ADASHARE
from .disparity import UNIT
from .mtan import MTAN, MTAN_SMALL
from .official import OFFICIAL

FILES = Files(
    title="Cityscapes",
    folders=("cityscapes", "cityscape"),
    layouts=(ADASHARE, MTAN, MTAN_SMALL, OFFICIAL),
    sizes={"train": 2975, "test": 500},
    licence="for research and other non-commercial use, after registration: the terms at cityscapes-dataset.com",
)
SOURCES = {
    "model": "DiSparse, section 4.1",
    "train": "DiSparse, section 4.3; crop, augmentation, weight decay and evaluation: its code",
    "finetune": "DiSparse, section 4.4; the rest as in train",
}
TRAIN = Recipe(
    steps=20_000,
    crop=224,
    lr=1e-4,
    lr_decay=0.5,
    lr_decay_every=4000,
)
# Its steps are fewer than those to the first decay.
FINETUNE = replace(TRAIN, steps=1000, lr=1e-5)
# Of the released code, for disparity; none are published for metres.
LOSS_WEIGHTS = {"segmentation": 1.0, "depth": 20.0}


def cityscapes(name: str, classes: int, unit: str, depth: str) -> Dataset:
    """Return the data set called `name` with 19 or 7 classes and depth in `unit`, in words `depth`."""
    return Dataset(
        name=name,
        description=f"Streets (Cityscapes): {classes} classes and {depth}.",
        labels=(
            Labels("segmentation", classes=classes, negative_void=True),
            Labels("depth", unit=unit),
        ),
        loss_weights=LOSS_WEIGHTS,
        model="deeplab-resnet34",
        train=TRAIN,
        finetune=FINETUNE,
        files=FILES,
        stand_in="scenes",
        sources=SOURCES,
    )


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the data set: with 19 and 7 classes, and with depth in metres."""
    register(cityscapes("cityscapes", 19, UNIT, "stereo disparity"))
    register(cityscapes("cityscapes-7", 7, UNIT, "stereo disparity"))
    register(cityscapes("cityscapes-metric", 19, "m", "depth in metres"))
