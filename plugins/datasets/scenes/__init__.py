"""Scenes: generated rooms with exact labels for five tasks, to try everything without any data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlprune_bench import (
    DataError,
    DataRequest,
    Dataset,
    Labelling,
    Labels,
    Recipe,
    Sample,
    Splits,
    as_tensor,
    hookimpl,
)

from .cache import VERSION, Plan, Scene, Stored, load, make_scene
from .kinds import CLASSES, VOID
from .labels import DEPTH_UNITS, FEWEST_CLASSES, Float32, class_table

Pair = tuple[NDArray[Any], NDArray[Any]]


def _segmentation(stored: NDArray[np.uint8], labels: Labels) -> Pair:
    classes = class_table(labels.classes)[stored]
    return classes, classes != VOID


def _normals(stored: Float32, labels: Labels) -> Pair:
    return stored, (stored != 0).any(axis=0)


def _depth(stored: Float32, labels: Labels) -> Pair:
    valid = stored > 0
    code = DEPTH_UNITS[labels.unit](np.where(valid, stored, np.float32(1)))
    return np.where(valid, code, np.float32(0)), valid[0]


def _everywhere(stored: Float32, labels: Labels) -> Pair:
    return stored, np.ones(stored.shape[1:], dtype=bool)


READERS: dict[str, Callable[[Any, Labels], Pair]] = {
    "segmentation": _segmentation,
    "normals": _normals,
    "depth": _depth,
    "keypoints": _everywhere,
    "edges": _everywhere,
}
"""By task: how a stored array becomes a target and its mask."""


@dataclass(frozen=True)
class Scenes:
    """Consecutive scenes of a plan, from row `first` on, with the labels that were asked for."""

    stored: Stored
    first: int
    count: int
    labels: tuple[Labels, ...]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Return scene `index`, copied out of the files."""
        if not 0 <= index < self.count:
            raise IndexError(f"There is no scene {index} among {self.count}.")
        arrays, row = self.stored.arrays, self.first + index
        return sample_of({name: arrays[name][row] for name in ("image", *READERS)}, self.labels)


def sample_of(scene: Scene, labels: tuple[Labels, ...]) -> Sample:
    """Return the arrays of a scene as a sample with the labels that are asked for."""
    return Sample(
        as_tensor(scene["image"]),
        {asked.task: Labelling((scene[asked.task],), partial(_decode, asked)) for asked in labels},
    )


def _decode(labels: Labels, stored: NDArray[Any]) -> Pair:
    return READERS[labels.task](stored, labels)


@dataclass(frozen=True)
class Drawn:
    """Scenes of any size, drawn when they are asked for."""

    labels: tuple[Labels, ...]
    size: tuple[int, int]
    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Return scene `index`; drawing one of 480 x 640 pixels takes seconds."""
        if not 0 <= index < self.count:
            raise IndexError(f"There is no scene {index} among {self.count}.")
        return sample_of(make_scene(self.seed, index, *self.size), self.labels)


def draw_scenes(labels: tuple[Labels, ...], size: tuple[int, int], count: int, seed: int) -> Drawn:
    """Return `count` scenes of `size` = (H, W) pixels. Raises DataError for labels that they do not have."""
    for asked in labels:
        check(asked)
    return Drawn(labels, size, count, seed)


def check(labels: Labels) -> None:
    """Raise DataError where the scenes do not have such labels."""
    if labels.task not in READERS:
        raise DataError(f"The scenes have no labels for '{labels.task}'; they have {', '.join(READERS)}.")
    if labels.task == "segmentation" and not FEWEST_CLASSES <= labels.classes <= CLASSES:
        raise DataError(f"The scenes have {FEWEST_CLASSES} to {CLASSES} classes, not {labels.classes}.")
    if labels.task == "depth" and labels.unit not in DEPTH_UNITS:
        raise DataError(f"The scenes have no depth in '{labels.unit}'; they have {', '.join(DEPTH_UNITS)}.")


def open_scenes(request: DataRequest, plan: Plan | None = None) -> Splits:
    """Return the scenes of `plan` (default: the dataset's own) with the labels of `request`.

    They are kept in the request's cache folder; its root plays no part. Raises DataError for labels that the
    scenes do not have.
    """
    for labels in request.labels:
        check(labels)
    plan = plan or Plan()
    stored = load(plan, request.cache)
    return Splits(
        train=Scenes(stored, 0, plan.train, request.labels),
        validation=Scenes(stored, plan.train, plan.validation, request.labels),
        test=Scenes(stored, plan.train + plan.validation, plan.test, request.labels),
        origin=f"generated scenes v{VERSION} (seed {plan.seed})",
        fingerprint=plan.name,
        mean=stored.mean,
        std=stored.std,
    )


@hookimpl
def register_datasets(register: Callable[[Any], None]) -> None:
    """Register the generated scenes."""
    train = Recipe(
        steps=400,
        batch=8,
        crop=64,
        lr=1e-3,
        lr_decay=0.5,
        lr_decay_every=150,
        scale_low=0.75,
        scale_high=1.25,
        eval_batch=8,
        select_every=100,
        update_every=10,
    )
    register(
        Dataset(
            name="scenes",
            description="Generated rooms of 96 x 128 pixels with exact labels for five tasks.",
            labels=(
                Labels("segmentation", classes=CLASSES),
                Labels("normals"),
                Labels("depth", unit="m"),
                Labels("keypoints"),
                Labels("edges"),
            ),
            # Those of NYU-v2 for the first two, of Taskonomy for the rest.
            loss_weights={"segmentation": 1.0, "normals": 20.0, "depth": 2.0, "keypoints": 7.0, "edges": 7.0},
            model="deeplab-small",
            train=train,
            finetune=Recipe(**{**vars(train), "steps": 100, "lr": 1e-4}),
            open=open_scenes,
            generate=draw_scenes,
        )
    )
