"""NYU-v2: 1449 photographs of rooms with 40 classes, surface normals and, where asked for, depth."""

from __future__ import annotations

from dataclasses import replace

from mtlprune_bench import (
    DataError,
    DataRequest,
    Dataset,
    Labels,
    Recipe,
    Register,
    Splits,
    checksum,
    hookimpl,
)

from .adashare import READERS, Photos, find_index, read_index

CLASSES = 40
MEAN = (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255)
"""Of RGB; the released code's, there in [0, 255] and blue first."""
STD = (0.229, 0.224, 0.225)
"""Of RGB, ImageNet's; the released code divides by none."""
HOLD_OUT = 10
"""Under a protocol that does not select on the test set, each so many-th training image is for validation."""

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


def check(labels: Labels) -> None:
    """Raise DataError where the files hold no such labels."""
    if labels.task not in READERS:
        raise DataError(f"NYU-v2 has no labels for '{labels.task}' in this layout; it has {', '.join(READERS)}.")
    if labels.task == "segmentation" and labels.classes != CLASSES:
        raise DataError(f"NYU-v2 has {CLASSES} classes in this layout, not {labels.classes}.")
    if labels.task == "depth" and labels.unit != "m":
        raise DataError(f"NYU-v2 has depth in 'm', not in '{labels.unit}'.")


def open_nyuv2(request: DataRequest) -> Splits | None:
    """Return the photographs below the request's root, None where there is no index of a known layout.

    The release has no validation set: protocol `disparse` validates on the test set, as the released code
    does; `standard` holds out every tenth training image where there are ten. Raises DataError for labels
    that the files do not have, and where the files are damaged or missing.
    """
    index = find_index(request.root) if request.root else None
    if index is None:
        return None
    for labels in request.labels:
        check(labels)
    entries = read_index(index, tuple(labels.task for labels in request.labels))
    train, test = entries["train"], entries["test"]
    if request.protocol.select == "test":
        validation, held_out = test, ""
    else:
        validation = train[HOLD_OUT - 1 :: HOLD_OUT]
        held_out = f" ({len(validation)} of them held out)" if validation else ""
        train = tuple(entry for number, entry in enumerate(train) if (number + 1) % HOLD_OUT)
    splits = (Photos(part, request.labels, request.protocol) for part in (train, validation, test))
    return Splits(
        **dict(zip(("train", "validation", "test"), splits, strict=True)),
        origin=f"NYU-v2, AdaShare layout, {len(entries['train'])} training{held_out} and {len(test)} test images",
        fingerprint=f"nyuv2-adashare-v1-{checksum(index)[:16]}",
        mean=MEAN,
        std=STD,
    )


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the data set."""
    register(
        Dataset(
            name="nyuv2",
            description="Rooms (NYU-v2): 40 classes and surface normals at 480 x 640.",
            labels=(Labels("segmentation", classes=CLASSES), Labels("normals")),
            loss_weights={"segmentation": 1.0, "normals": 20.0},  # released code
            model="deeplab-resnet34",
            train=TRAIN,
            finetune=FINETUNE,
            open=open_nyuv2,
            source="github.com/sunxm2357/AdaShare links to them: a folder with nyu_v2_3task.json.",
            stand_in="scenes",
            sources=SOURCES,
        )
    )
