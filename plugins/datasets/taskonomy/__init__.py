"""Tiny-Taskonomy: buildings with 17 classes, normals, depth, keypoints and edges."""

from __future__ import annotations

from dataclasses import replace

from mtlprune_bench import Dataset, Files, Labels, Recipe, Register, hookimpl

from .columns import CLASS_WEIGHTS, CLASSES
from .layouts import LAYOUTS

FILES = Files(
    title="Tiny-Taskonomy",
    folders=("taskonomy", "tinytaskonomy"),
    layouts=LAYOUTS,
    # Of the test buildings in MultiMAE's lists; those of the others are not published.
    sizes={"test": 54_514},
    licence=(
        "for non-commercial research and education, without warranty: "
        "github.com/StanfordVL/taskonomy/blob/master/data/LICENSE"
    ),
)
SOURCES = {
    "model": "DiSparse, section 4.1",
    "train": "DiSparse, section 4.3; crop, augmentation, weight decay and evaluation: its code",
    "finetune": "DiSparse, section 4.4; the rest as in train",
}
TRAIN = Recipe(
    steps=100_000,
    crop=224,
    lr=1e-4,
    lr_decay=0.3,
    lr_decay_every=12_000,
    eval_batch=16,
    select_every=10_000,
    update_every=250,
)
# The released code never applies the decay.
FINETUNE = replace(TRAIN, steps=4000, lr=1e-6, lr_decay_every=1500)


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the data set."""
    register(
        Dataset(
            name="taskonomy",
            description="Buildings (Tiny-Taskonomy): five tasks at 256 x 256.",
            labels=(
                Labels("segmentation", classes=CLASSES, class_weights=CLASS_WEIGHTS),
                Labels("normals", always_mirrored=True),
                Labels("depth", unit="log code"),
                Labels("keypoints"),
                Labels("edges"),
            ),
            # Released code.
            loss_weights={"segmentation": 1.0, "normals": 3.0, "depth": 2.0, "keypoints": 7.0, "edges": 7.0},
            model="deeplab-resnet34",
            train=TRAIN,
            finetune=FINETUNE,
            files=FILES,
            stand_in="scenes",
            sources=SOURCES,
        )
    )
