"""Cityscapes: street scenes with 19 classes and stereo disparity. Its files are not read yet."""

from __future__ import annotations

from dataclasses import replace

from mtlprune_bench import DataError, DataRequest, Dataset, Labels, Recipe, Register, Splits, hookimpl

FOLDERS = ("", "cityscapes", "Cityscapes", "cityscape")
SIGNS = ("cityscape.json", "leftImg8bit", "gtFine", "disparity")
"""Names by which the files of either layout are known: AdaShare's index, the official folders."""

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


def open_cityscapes(request: DataRequest) -> Splits | None:
    """Return None. Raises DataError where the root seems to hold the files: they are not passed over silently."""
    if request.root is not None:
        for path in (request.root / folder / sign for folder in FOLDERS for sign in SIGNS):
            if path.exists():
                raise DataError(
                    f"{path} is of Cityscapes, whose files are not read yet. Name no data folder for it."
                )
    return None


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the data set."""
    register(
        Dataset(
            name="cityscapes",
            description="Streets (Cityscapes): 19 classes and stereo disparity at 256 x 512.",
            labels=(
                Labels("segmentation", classes=19, negative_void=True),
                Labels("depth", unit="disparity/65535"),
            ),
            loss_weights={"segmentation": 1.0, "depth": 20.0},  # released code
            model="deeplab-resnet34",
            train=TRAIN,
            finetune=FINETUNE,
            open=open_cityscapes,
            source="They are at cityscapes-dataset.com; reading them is not implemented yet.",
            stand_in="scenes",
            sources=SOURCES,
        )
    )
