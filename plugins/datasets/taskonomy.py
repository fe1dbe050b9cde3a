"""Tiny-Taskonomy: buildings with 17 classes, normals, depth, keypoints and edges. Its files are not read yet."""

from __future__ import annotations

from dataclasses import replace

from mtlprune_bench import DataError, DataRequest, Dataset, Labels, Recipe, Register, Splits, hookimpl

FOLDERS = ("", "taskonomy", "Taskonomy", "tiny-taskonomy")
SIGNS = ("taskonomy.json", "semseg_prior_factor.npy", "depth_zbuffer", "keypoints2d")
"""Names by which the files are known: AdaShare's index and class weights, folders of labels."""

# semseg_prior_factor.npy of AdaShare's release, background first.
CLASS_WEIGHTS = (
    *(0.5424, 9.1674, 7.3310, 7.1620, 8.7229, 7.6133, 8.2369, 9.1486, 8.8220),
    *(9.0858, 8.9141, 9.1772, 9.0354, 8.6039, 9.1699, 9.1467, 9.1374),
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


def open_taskonomy(request: DataRequest) -> Splits | None:
    """Return None. Raises DataError where the root seems to hold the files: they are not passed over silently."""
    if request.root is not None:
        for path in (request.root / folder / sign for folder in FOLDERS for sign in SIGNS):
            if path.exists():
                raise DataError(
                    f"{path} is of Taskonomy, whose files are not read yet. Name no data folder for it."
                )
    return None


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the data set."""
    register(
        Dataset(
            name="taskonomy",
            description="Buildings (Tiny-Taskonomy): five tasks at 256 x 256.",
            labels=(
                Labels("segmentation", classes=17, class_weights=CLASS_WEIGHTS),
                Labels("normals"),
                Labels("depth", unit="log code"),
                Labels("keypoints"),
                Labels("edges"),
            ),
            # Released code.
            loss_weights={"segmentation": 1.0, "normals": 3.0, "depth": 2.0, "keypoints": 7.0, "edges": 7.0},
            model="deeplab-resnet34",
            train=TRAIN,
            finetune=FINETUNE,
            open=open_taskonomy,
            source="They are at taskonomy.stanford.edu; reading them is not implemented yet.",
            stand_in="scenes",
            sources=SOURCES,
        )
    )
